// handshake.md and records.md: vectors, and vectors of failures.
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Identity, x25519Pair } from '../crypto.js'
import { ClientHandshake, HandshakeError, type RecordKeys, RelayHandshake, WrongKeyError } from '../handshake.js'
import { RecordOpener, RecordSealer } from '../records.js'

const hex = (text: string): Buffer => Buffer.from(text.replace(/\s/g, ''), 'hex')
const fill = (byte: number): Buffer => Buffer.alloc(32, byte)
const client = new Identity(fill(0x11))
const relay = new Identity(fill(0x22))
const PINNED = relay.publicKey

const ACT1 = hex('415743017b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14')
const ACT2 = hex(`ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6b
  6e8aa1a79bb7fca31ec4c0526b6056409a77f03cdcd4dec4f219d3a728014647
  14ce505acf729869ef6645c4aa860d45f584f4677e84acfcebddf77966bccaa7
  ff6744cffc2751ff8d456d413923edb413516580430f269c546b8be62b4124a0`)
const ACT3 = hex(`236aecfab45a5c45a2e7f9c5608d59cd27364f02d5243ff7418193bd96825d32
  5efcf6f8884ebb714c79d540da7549e297933d5d9eecbd45a82bc6b04b910011
  ef147dd82388c74f49dae171aa695c854ad79839b18a1873538fe184b6565cd7`)
const K1 = 'af7a9fa0617fa5a4cf1935d35c93067af8a63c9c21f92b403a8847aadcf735ec'
const K2 = '94786f82b6a75fdcf1bb75ed8dd898609f7601273a565497707a6f853b36f523'

const clientSide = (pinned = PINNED): ClientHandshake => new ClientHandshake(client, pinned, x25519Pair(fill(0x33)))
const relaySide = (): RelayHandshake => new RelayHandshake(relay, x25519Pair(fill(0x44)))
const flip = (bytes: Buffer, at: number): Buffer => {
  const copy = Buffer.from(bytes)
  copy[at] ^= 1
  return copy
}

describe('handshake', () => {
  it('derives the keys of the vectors', () => {
    assert.equal(client.hex, 'd04ab232742bb4ab3a1368bd4615e4e6d0224ab71a016baf8520a332c9778737')
    assert.equal(client.image.privateKey.toString('hex'), '805b920bda4cd49d251d3329144a0cf8bdaaa07502626fa87f08e80faedab15f')
    assert.equal(client.image.publicKey.toString('hex'), '7a46e129fd805047448437e4744f1f1576be8c449fdf57e0c580d36c5cfc6668')
    assert.equal(relay.hex, 'a09aa5f47a6759802ff955f8dc2d2a14a5c99d23be97f864127ff9383455a4f0')
    assert.equal(relay.image.privateKey.toString('hex'), '68c3eb1cd6dbdd0037d503e6655229500a83f464be62ca753bff884c43788778')
    assert.equal(relay.image.publicKey.toString('hex'), '9d8d78b9c9e6661e552f2f1af02095ee2f8743fa2e6183f41bb7077ef51b5379')
  })

  it('runs the vectors in both roles', () => {
    const c = clientSide()
    const r = relaySide()
    assert.equal(c.symmetric.h.toString('hex'), '9ef3caf0a28f4dd8a83c67b8ef6d9e6fe5604a113f31c5ea45fd3014e8ec4ba9')
    assert.deepEqual(c.act1(), ACT1)
    assert.equal(c.symmetric.h.toString('hex'), 'e68b2b33e8917930c5763079a6d285d5912661195d680f2127f98bb27185d8a2')
    assert.deepEqual(r.act2(ACT1), ACT2)
    assert.equal(r.symmetric.h.toString('hex'), '36629c8c366ec032356c22f694ae71d8b62fc4fbaf4a3df9bc58c7dda812b9c4')
    assert.equal(r.symmetric.ck.toString('hex'), '36e66faf1f3780aa1c4ccb1724ceb6939a43da364b45419b01a37f67d952ad9a')
    assert.equal(r.symmetric.k.toString('hex'), '20fa5ac4f1cf90c300160baaef6b1bbe366b5d93231ce2c2aaefd0f04b2a948a')
    const { act3, keys } = c.act3(ACT2)
    assert.deepEqual(act3, ACT3)
    const check = (k: RecordKeys): void => {
      assert.equal(k.toRelay.toString('hex'), K1)
      assert.equal(k.toClient.toString('hex'), K2)
      assert.equal(k.hash.toString('hex'), 'd7d8cabc44ed3ea821ff21b5c92b8c36a8c223b97ad7a5e7f0de38c5d9bfdea6')
    }
    check(keys)
    const relayKeys = r.finish(ACT3)
    check(relayKeys)
    assert.deepEqual(relayKeys.peer, client.publicKey)
  })

  it('refuses bad act 1', () => {
    assert.throws(() => RelayHandshake.checkPreface(hex('42')), HandshakeError)
    assert.throws(() => RelayHandshake.checkPreface(hex('41574302')), HandshakeError)
    assert.throws(() => relaySide().act2(flip(ACT1, 0)), HandshakeError)
    assert.throws(() => relaySide().act2(Buffer.concat([ACT1.subarray(0, 4), Buffer.alloc(32)])), HandshakeError)
  })

  for (const at of [0, 31, 32, 79, 80, 127]) {
    it(`refuses act 2 with byte ${at} changed`, () => {
      const c = clientSide()
      c.act1()
      assert.throws(() => c.act3(flip(ACT2, at)), HandshakeError)
    })
  }

  it('refuses another key than the pinned one', () => {
    const c = clientSide(hex('c6822637c7d310ec57627be00ba259d253749f4aaf644470cffbe53a35f73242'))
    c.act1()
    assert.throws(() => c.act3(ACT2), WrongKeyError)
  })

  const finish = (act3: Buffer): RecordKeys => {
    const r = relaySide()
    r.act2(ACT1)
    return r.finish(act3)
  }
  for (const at of [0, 47, 48, 95]) {
    it(`refuses act 3 with byte ${at} changed`, () => { assert.throws(() => finish(flip(ACT3, at)), HandshakeError) })
  }

  const refused = {
    'an identity that is not the image\'s': ['236aecfab45a5c45a2e7f9c5608d59cd27364f02d5243ff7418193bd96825d32 5efcf6f8884ebb714c79d540da7549e2815ba9582d141902c55ad5ed0626bd25 6c42a82596ede8900301a77956e9e9f0d916bd74a2ad98b65d43221b763df487', /not that of the static key/],
    'the relay\'s own identity': ['c4a1756a803c6a1cb34ce13be4e2d3367e0f80bc649aebe39fb647af3f656823 af7d63eaad829cfa915effcfff5f03c0691ea28292719e691979ee12849eb583 874c71b6b02cc926f9ce5f66287269ad7f93d73f8470fdb4bf683df652443f08', /the own one/],
    'an identity of small order': ['236aecfab45a5c45a2e7f9c5608d59cd27364f02d5243ff7418193bd96825d32 5efcf6f8884ebb714c79d540da7549e247d98f6feac709ee9238ae0d0d84e4f7 3f36376f3989ace0ccfa4243631edbb234dbe884211d2bb4158f1b8cc25f1538', /not a valid identity/],
  } as const
  for (const [name, [act3, why]] of Object.entries(refused)) it(`refuses ${name}`, () => { assert.throws(() => finish(hex(act3)), why) })

  it('accepts -K', () => {
    const keys = finish(hex('236aecfab45a5c45a2e7f9c5608d59cd27364f02d5243ff7418193bd96825d32 5efcf6f8884ebb714c79d540da7549e297933d5d9eecbd45a82bc6b04b910011 ef147dd82388c74f49dae171aa695c0510c30e06c8edf680d85d0c691e882f25'))
    assert.equal(keys.peer.toString('hex'), 'd04ab232742bb4ab3a1368bd4615e4e6d0224ab71a016baf8520a332c97787b7')
  })
})

describe('records', () => {
  const PLAIN = hex('000000058314004100')
  const at = new Map([
    [0, '001965c06ca88c804d195312e4e131e7b586b2267479d604279ba1'],
    [1023, '00193e35dcabd6e595229daa501a3b40907fca714bef27121cd836'],
    [1024, '00198b5f4783322097f8248d1150a41c1da93d7c3040f8827cb709'],
    [2048, '00194daefc3c3c5166046a927e09e9552b6eb714d74723eb085885'],
  ])

  it('seals and opens the vectors, over two rekeyings, byte by byte', () => {
    const sealer = new RecordSealer(hex(K1))
    const opener = new RecordOpener(hex(K1))
    let opened = 0
    for (let n = 0; n <= 2048; n++) {
      if (n === 1024) assert.equal(sealer.key.toString('hex'), 'a02823c7c2383ff37661a4074f52974b296318088f198caeb449537af2275a43')
      if (n === 2048) assert.equal(sealer.key.toString('hex'), 'e89a45d886ba947d2af92e71d22b1fd9e2d36e268934aa15e44dbfb11f82f188')
      const record = sealer.seal(PLAIN)
      if (at.has(n)) assert.equal(record.toString('hex'), at.get(n))
      for (const byte of record) opener.push(Buffer.of(byte), plaintext => { opened++; assert.deepEqual(plaintext, PLAIN) })
    }
    assert.equal(opened, 2049)
    assert.equal(new RecordSealer(hex(K2)).seal(PLAIN).toString('hex'), '0019ace554f4b109494f34800720a753246bb6834d2031a9ce204d')
  })

  const open = (...records: Buffer[]): void => {
    const opener = new RecordOpener(hex(K1))
    for (const record of records) opener.push(record, () => {})
  }

  it('refuses what must fail', () => {
    const first = hex(at.get(0)!)
    assert.throws(() => open(Buffer.concat([hex('0010'), Buffer.alloc(16)])), /shorter/)
    assert.throws(() => open(first, first), /does not open/)
    assert.throws(() => open(first, hex(at.get(1024)!)), /does not open/)
    for (let bit = 16; bit < first.length * 8; bit++) {
      const bad = Buffer.from(first)
      bad[bit >> 3] ^= 1 << (bit & 7)
      assert.throws(() => open(bad), /does not open/)
    }
  })

  it('seals 1 to 65,519 bytes', () => {
    assert.throws(() => new RecordSealer(hex(K1)).seal(Buffer.alloc(0)))
    assert.throws(() => new RecordSealer(hex(K1)).seal(Buffer.alloc(65_520)))
    const record = new RecordSealer(hex(K1)).seal(Buffer.alloc(65_519))
    let length = 0
    new RecordOpener(hex(K1)).push(record, plaintext => { length = plaintext.length })
    assert.equal(length, 65_519)
  })
})
