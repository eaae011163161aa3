// A raw client asks a real relay (AC_RELAY) what the specification says it must answer.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { once } from 'node:events'
import { describe, it } from 'node:test'
import { encode, type Value } from '../cbor.js'
import { Identity } from '../crypto.js'
import { CODES } from '../errors.js'
import { frame } from '../frames.js'
import { parseAddress } from '../messages.js'
import { EMPTY, hello, Raw, RELAY } from './raw.js'

const skip = RELAY === undefined && 'set AC_RELAY to the address of a relay'
const hex = (text: string): Buffer => Buffer.from(text.replace(/\s/g, ''), 'hex')
const framed = (text: string): Buffer => frame(hex(text))
const name = (): string => `raw-${randomBytes(5).toString('hex')}`

describe('a real relay', { skip }, () => {
  const first: Array<[string, keyof typeof CODES, Buffer]> = [
    ['PING before HELLO', 'unexpected_message', frame(encode([20, 0, EMPTY]))],
    ['an extension before HELLO', 'unexpected_message', frame(encode([64]))],
    ['CLOSE before HELLO', 'ok', frame(encode([26, 0, '']))],
    ['HELLO of revision 2', 'unsupported_revision', frame(encode(hello([], 2)))],
    ['a frame of 65,537 bytes before HELLO', 'frame_too_large', hex('00010001')],
    ['a HELLO with attributes of 1,025 bytes', 'protocol_error', frame(encode(hello([], 1, [1, EMPTY], 1, new Map([['a', 'x'.repeat(1_019)]]))))],
    ['a HELLO with a short incarnation', 'protocol_error', frame(encode(hello([], 1, [1, Buffer.alloc(7)])))],
    ['a HELLO with an array among its attributes', 'protocol_error', frame(encode(hello([], 1, [1, Buffer.alloc(8)], 1, new Map<string, Value>([['a', []]]))))],
    ['a HELLO with flags 4', 'protocol_error', frame(encode(hello([['a', 4, null]])))],
  ]
  for (const [what, code, bytes] of first) {
    it(`answers ${what} with CLOSE ${code}`, async () => {
      const raw = await Raw.open()
      raw.bytes(bytes)
      await raw.closes(code)
    })
  }

  const later: Array<[string, keyof typeof CODES, Buffer]> = [
    ['a second HELLO', 'unexpected_message', frame(encode(hello()))],
    ['kind 12', 'unexpected_message', frame(encode([12]))],
    ['kind 63', 'unexpected_message', frame(encode([63, 1, 2]))],
    ['a relay message', 'unexpected_message', frame(encode([5, 'a', 0]))],
    ['a frame of length 0', 'protocol_error', hex('00000000')],
    ['a frame longer than frame_bytes', 'frame_too_large', hex('00100401')],
    ['a kind that is text', 'protocol_error', frame(encode(['a']))],
    ['a negative kind', 'protocol_error', frame(encode([-1]))],
    ['an empty array', 'protocol_error', frame(encode([]))],
    ['something other than an array', 'protocol_error', frame(encode(5))],
    ['class 7', 'protocol_error', frame(encode([6, 'a', 7, 0, EMPTY]))],
    ['content 24', 'protocol_error', frame(encode([6, 'a', 1, 24, EMPTY]))],
    ['a payload that is text', 'protocol_error', frame(encode([6, 'a', 1, 0, 'x']))],
    ['a PUBLISH that is too short', 'protocol_error', frame(encode([6, 'a', 1, 0]))],
    ['a room name of 129 bytes', 'protocol_error', frame(encode([2, 'a'.repeat(129), 0, null]))],
    ['an empty room name', 'protocol_error', frame(encode([4, '']))],
    ['a peer of 31 bytes', 'protocol_error', frame(encode([7, Buffer.alloc(31), 1, 0, EMPTY]))],
    ['an empty capability', 'protocol_error', frame(encode([2, 'a', 0, EMPTY]))],
    ['a token of 33 bytes', 'protocol_error', frame(encode([20, 0, Buffer.alloc(33)]))],
    ['PING of kind 2', 'protocol_error', frame(encode([20, 2, EMPTY]))],
    ['CLOSE with a detail of 257 bytes', 'protocol_error', frame(encode([26, 0, 'x'.repeat(257)]))],
    ['PAUSE of a room', 'protocol_error', frame(encode([18, 'a', 1, 0]))],
    ['RESUME of a peer', 'protocol_error', frame(encode([19, Buffer.alloc(32), 1]))],
    ['PAUSE of class 7', 'protocol_error', frame(encode([18, null, 7, 0]))],
    ['a fragment below 1,024 bytes', 'protocol_error', frame(encode([23, 1, 0, Buffer.alloc(1_023)]))],
    ['an empty last fragment', 'protocol_error', frame(encode([23, 1, 1, EMPTY]))],
    ['an abort without an open frame', 'protocol_error', frame(encode([23, 1, 2, EMPTY]))],
    ['a fragmented JOIN', 'protocol_error', frame(encode([23, 1, 1, encode([2, 'a', 0, null])]))],
    ['a fragmented DELIVER', 'unexpected_message', frame(encode([23, 1, 1, encode([9, 1, Buffer.alloc(32), null, 1, 0, EMPTY])]))],
    ['a fragment in fragments', 'protocol_error', frame(encode([23, 1, 1, encode([23, 1, 2, EMPTY])]))],
    ['fragments of another class', 'protocol_error', frame(encode([23, 2, 1, encode([6, 'a', 1, 0, EMPTY])]))],
    ['a message of a class with an open frame', 'protocol_error', Buffer.concat([frame(encode([23, 1, 0, Buffer.alloc(1_024)])), frame(encode([6, 'a', 1, 0, EMPTY]))])],
    ['a length that is not the shortest', 'protocol_error', framed('980314004100')],
    ['an integer that is not the shortest', 'protocol_error', framed('831418004100')],
    ['an indefinite length', 'protocol_error', framed('9f14004100ff')],
    ['a byte behind the item', 'protocol_error', framed('831400410000')],
    ['an item that is not complete', 'protocol_error', framed('8314004200')],
    ['text that is not UTF-8', 'protocol_error', framed('8204 61ff')],
    ['a surrogate in text', 'protocol_error', framed('8204 63eda080')],
    ['an extension with a float', 'protocol_error', framed('821840 fb3ff0000000000000')],
    ['an extension of depth 5', 'protocol_error', framed('821840 81818181 01')],
    ['an extension with 4,097 items', 'protocol_error', frame(Buffer.concat([hex('991001 1840'), Buffer.alloc(4_096)]))],
  ]
  for (const [what, code, bytes] of later) {
    it(`answers ${what} with CLOSE ${code}`, async () => {
      const raw = await Raw.greeted()
      raw.bytes(bytes)
      await raw.closes(code)
    })
  }

  it('answers records that are too short or do not open', async () => {
    for (const bytes of [Buffer.concat([hex('0010'), Buffer.alloc(16)]), Buffer.concat([hex('0011'), Buffer.alloc(17)])]) {
      const raw = await Raw.greeted()
      raw.socket.write(bytes)
      await raw.closes('protocol_error')
    }
  })

  it('takes what it must take', async () => {
    const raw = await Raw.greeted()
    raw.send([64], [2n ** 63n, new Map([['a', [1]]])], [19, null, 3], [21, Buffer.alloc(3)], [20, 0, EMPTY])
    await raw.until(21)
    raw.send([23, 1, 0, Buffer.alloc(1_024)], [23, 0, 0, Buffer.alloc(2_000)], [20, 0, Buffer.of(9)], [2, name(), 0, null])
    await raw.until(21)
    await raw.until(3)
    raw.send([23, 1, 2, EMPTY], [23, 0, 2, EMPTY])
    await raw.lives()
    raw.bytes(Buffer.from([0])) // a frame over many records
    raw.bytes(Buffer.from([0, 0, 5, 0x83]))
    raw.bytes(hex('14004107'))
    assert.deepEqual(Buffer.from((await raw.until(21))[1] as Uint8Array), Buffer.of(7))
    raw.socket.destroy()
  })

  it('answers each entry of HELLO, JOIN and LEAVE in order', async () => {
    const [a, b] = [name(), name()]
    const raw = await Raw.greeted([[a, 0, null], ['@bad', 0, null], [b, 2, null], [a, 1, null], ['x\n', 0, null], [`@${'ab'.repeat(32)}/x`, 0, null]])
    raw.send([4, 'not\u0085valid'], [4, a], [2, a, 0, null], [4, a], [2, a, 3, Buffer.from('capability')])
    await raw.lives()
    const answers = raw.frames.filter(one => one[0] === 3 || one[0] === 5).map(one => `${one[0] === 3 ? `joined ${one[2]} ${one[3]}` : `left ${one[2]}`}`)
    assert.deepEqual(answers, ['joined 1 1', 'left 38', 'joined 0 0', 'joined 1 1', 'left 38', 'left 40', 'left 0', 'left 0', 'joined 1 1', 'left 0', 'joined 0 0'])
    raw.socket.destroy()
  })

  it('answers MEMBERS, PRESENT and STATS', async () => {
    const a = name()
    const raw = await Raw.greeted([[a, 0, null]])
    raw.send([10, a, 0], [10, a, 1], [10, name(), 0], [10, '@', 0], [14, a, Buffer.of(1)], [14, '@', Buffer.of(1)], [14, `@${'ab'.repeat(32)}/x`, Buffer.of(1)], [24])
    await raw.lives()
    await new Promise(resolve => setTimeout(resolve, 100))
    const pages = raw.frames.filter(one => one[0] === 11).map(one => [one[2], (one[4] as Value[]).length, one[5]])
    assert.deepEqual(pages, [[0, 1, null], [0, 0, null], [39, 0, null], [38, 0, null]])
    assert.deepEqual(raw.frames.filter(one => one[0] === 15).map(one => one[2]), [0, 38, 40])
    await raw.until(25)
    raw.socket.destroy()
  })

  it('counts ordinals as the example of sessions.md does', async () => {
    const raw = await Raw.greeted()
    const room = name()
    const inner = encode([6, room, 0, 0, Buffer.alloc(2_000)])
    raw.send([23, 0, 0, inner.subarray(0, 1_500)], [6, room, 5, 0, EMPTY], [23, 0, 1, inner.subarray(1_500)],
      [23, 1, 0, Buffer.alloc(1_024)], [23, 1, 2, EMPTY], [7, randomBytes(32), 1, 0, EMPTY])
    await raw.lives()
    const rejects = raw.frames.filter(one => one[0] === 16).map(one => one.slice(1, 4))
    assert.ok(JSON.stringify(rejects) === '[[1,2,32],[3,1,33]]' || JSON.stringify(rejects) === '[[1,1,32],[2,1,32],[3,1,33]]', JSON.stringify(rejects))
    raw.socket.destroy()
  })

  it('decides about the same key twice', async () => {
    const identity = new Identity()
    const incarnation = [5, randomBytes(8)]
    const one = await Raw.open(identity)
    one.send(hello([], 1, incarnation, 7))
    await one.until(1)
    const two = await Raw.open(identity)
    two.send(hello([], 1, incarnation, 7))
    assert.equal((await two.until(22))[1], CODES.superseded)
    await two.closes('superseded')
    const three = await Raw.open(identity)
    three.send(hello([], 1, incarnation, 8))
    await three.until(1)
    assert.equal((await one.until(22))[1], CODES.superseded)
    await one.closes('superseded')
    const four = await Raw.open(identity)
    four.send(hello([], 1, [5, randomBytes(8)], 1))
    await four.until(1)
    assert.equal((await three.until(22))[1], CODES.replaced)
    await three.closes('replaced')
    four.socket.destroy()
  })

  it('holds a class that the client paused, but neither LEFT nor PONG', async () => {
    const room = name()
    const [a, b] = [await Raw.greeted(), await Raw.greeted([[room, 0, null]])]
    await b.until(3)
    b.send([18, null, 1, 0], [18, null, 2, 300])
    await b.lives()
    a.send([6, room, 1, 0, Buffer.from('held')], [6, room, 5, 0, Buffer.from('not held')])
    await a.lives()
    assert.equal((await b.until(9))[4], 5)
    b.send([10, room, 0], [4, room])
    await b.until(5)
    await b.lives()
    assert.ok(!b.frames.some(one => one[0] === 9 || one[0] === 11))
    await b.until(11) // the PAUSE of class 2 lapses
    b.send([19, null, 1])
    assert.equal((await b.until(9))[4], 1)
    a.socket.destroy()
    b.socket.destroy()
  })

  it('sends what is queued before its CLOSE 0', async () => {
    const room = name()
    const [a, b] = [await Raw.greeted(), await Raw.greeted([[room, 0, null]])]
    await b.until(3)
    b.send([18, null, 1, 0])
    await b.lives()
    a.send([6, room, 1, 0, Buffer.from('late')])
    await a.lives()
    b.send([26, 0, ''])
    await b.until(9)
    await b.closes('ok')
    a.send([6, room, 1, 0, EMPTY])
    assert.equal((await a.until(16))[3], CODES.no_members)
    a.socket.destroy()
  })

  it('says nothing before the handshake is over', async () => {
    const address = parseAddress(RELAY!)
    for (const bytes of [hex('42'), hex('41574302'), Buffer.concat([hex('41574301'), Buffer.alloc(32)])]) {
      const socket = 'path' in address ? connect(address.path) : connect(address.port, address.host)
      let heard = 0
      socket.on('data', chunk => { heard += chunk.length })
      socket.on('error', () => {})
      socket.write(bytes)
      await once(socket, 'close')
      assert.equal(heard, 0)
    }
  })
})
