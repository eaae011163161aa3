// cbor.md, messages.cddl, frames.md, rooms.md: what is written and what is refused.
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { decode, encode, type Value } from '../cbor.js'
import { ProtocolFault } from '../errors.js'
import { Assembler, Cutter, frame, FrameReader } from '../frames.js'
import { type Deliver, type Message, parse, parseAddress, type Publish, serialize, validRoom } from '../messages.js'

const hex = (text: string): Buffer => Buffer.from(text.replace(/\s/g, ''), 'hex')
const faults = (code: string) => (error: unknown): boolean => error instanceof ProtocolFault && error.code === code
const KEY = hex('d04ab232742bb4ab3a1368bd4615e4e6d0224ab71a016baf8520a332c9778737')

describe('CBOR', () => {
  it('takes the good vectors', () => {
    assert.deepEqual(parse(hex('8314004100'), 'relay'), [20, 0, Buffer.of(0)])
    assert.deepEqual(parse(hex('811818'), 'client'), [24])
  })

  const bad = [
    '831418004100', '980314004100', '9f14004100ff', '8314005f4100ff', '831400410000', '83140042 00',
    '821819a2616201616102', '821819a2616101616102', '821819a10102', '821819a16161fb3ff0000000000000', '821819a16161c24101',
    '821819a16161f7', '821819a161ff01', '821819a16161818101', '821819a1616181818101', '', '00', '80', '8120', '81', '9b7fffffffffffffff',
  ]
  for (const bytes of bad) it(`refuses ${bytes || 'nothing'}`, () => { assert.throws(() => parse(hex(bytes), 'relay'), faults('protocol_error')) })

  it('has the whole frames of the vectors', () => {
    const hello: Message = [0, 1, [1700000000000, hex('0001020304050607')], 1, new Map([['name', 'a']]), [['lobby', 1, null]]]
    assert.equal(frame(serialize(hello)).toString('hex'), '00000029860001821b0000018bcfe5680048000102030405060701a1646e616d6561618183656c6f62627901f6')
    const limits = new Map([['rooms', 256], ['drop_ms', 60000], ['page_bytes', 49152], ['frame_bytes', 1049600], ['keepalive_ms', 25000], ['room_members', 10000], ['payload_bytes', 1048576]])
    const welcome: Message = [1, 1, hex('0001020304050607'), limits, [], []]
    assert.equal(frame(serialize(welcome, 'relay')).toString('hex'), hex(`00000075860101480001020304050607a765726f6f6d731901006764726f705f6d7319ea606a706167655f6279
      74657319c0006b6672616d655f62797465731a001004006c6b656570616c6976655f6d731961a86c726f6f6d5f
      6d656d626572731927106d7061796c6f61645f62797465731a001000008080`).toString('hex'))
    assert.equal(frame(serialize([6, 'lobby', 1, 0, Buffer.from('hello')])).toString('hex'), '000000108506656c6f62627901004568656c6c6f')
    assert.equal(frame(serialize([9, 0, KEY, 'lobby', 1, 0, Buffer.from('hello')], 'relay')).toString('hex'),
      '000000338709005820d04ab232742bb4ab3a1368bd4615e4e6d0224ab71a016baf8520a332c9778737656c6f626279010045 68656c6c6f'.replace(' ', ''))
  })

  it('keeps every integer', () => {
    for (const n of [0n, 23n, 24n, 255n, 256n, 65535n, 65536n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 64n - 1n, -1n, -24n, -25n, -(2n ** 53n), -(2n ** 64n)]) {
      assert.equal(BigInt(decode(encode(n)) as number), n)
    }
    assert.throws(() => encode(2n ** 64n))
  })

  it('keeps to the limits both ways', () => {
    const deep = (n: number): Value => n === 0 ? 1 : [deep(n - 1)]
    decode(encode(deep(4)))
    assert.throws(() => encode(deep(5)))
    assert.throws(() => decode(hex('818181818101')), faults('protocol_error'))
    const head = (n: number): Buffer => Buffer.concat([hex('99'), Buffer.of(n >> 8, n & 255), Buffer.alloc(n)])
    decode(head(4_096))
    assert.throws(() => decode(head(4_097)), faults('protocol_error'))
    const map = new Map(Array.from({ length: 33 }, (_, i) => [`k${String(i).padStart(2, '0')}`, 1]))
    assert.throws(() => encode(map))
    const text = encode('\ufefflobby')
    assert.equal(decode(text), '\ufefflobby') // a byte order mark is text like any other
    assert.throws(() => encode('\ud800'))
    assert.throws(() => decode(hex('63eda080')), faults('protocol_error'))
  })

  it('sorts keys by their encoded bytes', () => {
    assert.equal(encode(new Map([['aa', 1], ['b', 2]])).toString('hex'), 'a26162026261 6101'.replace(' ', ''))
  })
})

describe('messages', () => {
  const from = (role: 'client' | 'relay', value: Value): Message | null => parse(encode(value), role)
  it('judges by role, kind and CDDL', () => {
    assert.throws(() => from('relay', [6, 'a', 1, 0, Buffer.alloc(0)]), faults('unexpected_message'))
    assert.throws(() => from('relay', [12]), faults('unexpected_message'))
    assert.throws(() => from('relay', [27]), faults('unexpected_message'))
    assert.throws(() => from('relay', [63, 1]), faults('unexpected_message'))
    assert.equal(from('relay', [64]), null)
    assert.equal(from('relay', [2n ** 60n, 'x']), null)
    assert.throws(() => from('relay', [-1]), faults('protocol_error'))
    assert.throws(() => from('relay', [5, 'a']), faults('protocol_error'))
    assert.throws(() => from('relay', [5, 'a', 0, 0]), faults('protocol_error'))
    assert.throws(() => from('relay', [5, '', 0]), faults('protocol_error'))
    assert.throws(() => from('relay', [9, 1, KEY, 'a', 1, 0, Buffer.alloc(0)]), faults('protocol_error'))
    assert.throws(() => from('relay', [9, 0, KEY, null, 1, 0, Buffer.alloc(0)]), faults('protocol_error'))
    assert.throws(() => from('relay', [9, 1, KEY, null, 7, 0, Buffer.alloc(0)]), faults('protocol_error'))
    assert.throws(() => from('relay', [18, null, 1, 1]), faults('protocol_error'))
    assert.throws(() => from('client', [18, 'a', 1, 1]), faults('protocol_error'))
    assert.throws(() => from('relay', [15, null, 0, [[1, 0, 1, 0]]]), faults('protocol_error'))
    assert.throws(() => from('relay', [15, null, 0, [[1, 1, 1, 0], [1, 2, 2, 0]]]), faults('protocol_error'))
    const big = new Map<string, Value>([['a', 'x'.repeat(1_020)]])
    assert.throws(() => from('relay', [11, 'a', 0, 1, [[KEY, 1, big]], null]), faults('protocol_error'))
    assert.ok(from('relay', [11, 'a', 0, 1, [[KEY, 1, new Map<string, Value>([['a', null]])]], null]))
  })

  it('knows the names of rooms', () => {
    const digits = 'ab'.repeat(32)
    for (const name of ['lobby', 'a/b', 'Räume', ' ', 'lobby@home', `@${digits}/x`]) assert.ok(validRoom(name), name)
    for (const name of ['', 'a'.repeat(129), 'a\n', '@', '@lobby', `@${digits}`, `@${digits}/`, `@${`A${digits.slice(1)}`}/x`, 'a\u0085']) assert.ok(!validRoom(name), name)
  })

  it('knows addresses', () => {
    const key = 'ab'.repeat(32)
    assert.deepEqual(parseAddress(`ac://${key}@localhost`), { key: Buffer.from(key, 'hex'), host: 'localhost', port: 7_420 })
    assert.deepEqual(parseAddress(`ac://${key}@[::1]:9`), { key: Buffer.from(key, 'hex'), host: '::1', port: 9 })
    assert.deepEqual(parseAddress(`ac://${key}@/run/x.sock`), { key: Buffer.from(key, 'hex'), path: '/run/x.sock' })
    for (const bad of ['localhost:1', `ac://${key.toUpperCase()}@a`, `ac://${key.slice(1)}@a`, `ac://${key}@`, `ac://${key}@a:0`, `ac://${key}@a:65536`]) assert.throws(() => parseAddress(bad), bad)
  })
})

describe('frames', () => {
  it('reads frames byte by byte and many in one piece', () => {
    const one = hex('000000058314004100')
    for (const pieces of [[...Buffer.concat([one, one])].map(byte => Buffer.of(byte)), [Buffer.concat([one, one])]]) {
      const reader = new FrameReader(() => 65_536)
      const arrays: string[] = []
      for (const piece of pieces) reader.push(piece, array => arrays.push(array.toString('hex')))
      assert.deepEqual(arrays, ['8314004100', '8314004100'])
      assert.ok(!reader.insideFrame)
    }
  })

  it('judges the length at once', () => {
    assert.throws(() => new FrameReader(() => 65_536).push(hex('00000000'), () => {}), faults('protocol_error'))
    assert.throws(() => new FrameReader(() => 65_536).push(hex('00010001'), () => {}), faults('frame_too_large'))
    new FrameReader(() => 65_536).push(hex('00010000'), () => {})
  })

  const deliver = (size: number, cls = 1): Deliver => [9, 0, KEY, 'lobby', cls, 0, Buffer.alloc(size, 7)]
  const fragments = (message: Message, cls: number, from: 'client' | 'relay'): Message[] => {
    const cutter = new Cutter(serialize(message, from), cls)
    const messages: Message[] = []
    for (let last = false; !last;) {
      const piece = cutter.next()
      last = piece.last
      messages.push(parse(piece.bytes.subarray(4), from)!)
    }
    return messages
  }

  it('cuts long messages and puts them together again', () => {
    const message: Publish = [6, 'lobby', 0, 0, Buffer.alloc(900_000, 1)]
    const pieces = fragments(message, 0, 'client')
    assert.equal(pieces.length, 56)
    const assembler = new Assembler('client', () => 1_049_600)
    const results = pieces.map(piece => assembler.take(piece))
    assert.ok(results.slice(0, -1).every(result => result === null))
    assert.deepEqual(results.at(-1), message)
    assert.equal(fragments([6, 'lobby', 0, 0, Buffer.alloc(17_404 - 13)], 0, 'client').length, 1)
    assert.equal(fragments([6, 'lobby', 0, 0, Buffer.alloc(17_405 - 13)], 0, 'client').length, 2)
  })

  it('keeps the rules of fragments', () => {
    const make = (): Assembler => new Assembler('relay', () => 20_000)
    const inner = serialize(deliver(3_000), 'relay')
    const [a, b] = [inner.subarray(0, 2_000), inner.subarray(2_000)]
    const open = (): Assembler => {
      const assembler = make()
      assembler.take([23, 1, 0, a])
      return assembler
    }
    assert.deepEqual(open().take([23, 1, 1, b]), deliver(3_000))
    assert.throws(() => make().take([23, 1, 2, Buffer.alloc(0)]), faults('protocol_error'))
    assert.equal(open().take([23, 1, 2, Buffer.alloc(0)]), null)
    assert.throws(() => open().take(deliver(1)), faults('protocol_error'))
    assert.deepEqual(open().take(deliver(1, 2)), deliver(1, 2))
    assert.throws(() => { const x = make(); x.take([23, 2, 0, a]); x.take([23, 2, 1, b]) }, faults('protocol_error'))
    assert.throws(() => open().take([23, 1, 0, Buffer.alloc(18_001)]), faults('frame_too_large'))
    assert.throws(() => make().take([23, 1, 1, encode([5, 'a', 0])]), faults('protocol_error'))
    assert.throws(() => make().take([23, 1, 1, encode([6, 'a', 1, 0, Buffer.alloc(0)])]), faults('unexpected_message'))
    assert.throws(() => parse(encode([23, 1, 0, Buffer.alloc(1_023)]), 'relay'), faults('protocol_error'))
    assert.throws(() => parse(encode([23, 1, 1, Buffer.alloc(0)]), 'relay'), faults('protocol_error'))
    assert.throws(() => parse(encode([23, 1, 2, Buffer.alloc(1)]), 'relay'), faults('protocol_error'))
    assert.throws(() => parse(encode([23, 1, 1, Buffer.alloc(65_537)]), 'relay'), faults('protocol_error'))
  })
})
