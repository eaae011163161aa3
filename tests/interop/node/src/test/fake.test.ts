// The client against a relay that these tests play: what a real one never does.
import assert from 'node:assert/strict'
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { once } from 'node:events'
import { describe, it } from 'node:test'
import { encode, type Value } from '../cbor.js'
import { Client } from '../client.js'
import type { End } from '../connection.js'
import { Identity } from '../crypto.js'
import { CODES } from '../errors.js'
import { frame, FrameReader } from '../frames.js'
import { ACT1_BYTES, ACT3_BYTES, RelayHandshake } from '../handshake.js'
import { type Message, parse } from '../messages.js'
import { RecordOpener, RecordSealer } from '../records.js'

const WELCOME: Value = [1, 1, Buffer.alloc(8, 1), new Map(), [], []]
const KEY = new Identity().publicKey

/** A relay of one connection: `onMessage` sees what the client says, `send` answers. */
class FakeRelay {
  readonly identity = new Identity()
  readonly received: Message[] = []
  server!: Server
  socket!: Socket
  private sealer!: RecordSealer

  async listen(onMessage: (message: Message, relay: FakeRelay) => void): Promise<string> {
    this.server = createServer(socket => {
      this.socket = socket
      socket.on('error', () => {})
      const handshake = new RelayHandshake(this.identity)
      let input = Buffer.alloc(0)
      let step = 0
      let opener: RecordOpener
      const reader = new FrameReader(() => 1_049_600)
      socket.on('data', chunk => {
        input = Buffer.concat([input, chunk])
        if (step === 0 && input.length >= ACT1_BYTES) {
          socket.write(handshake.act2(input.subarray(0, ACT1_BYTES)))
          input = input.subarray(ACT1_BYTES)
          step = 1
        }
        if (step === 1 && input.length >= ACT3_BYTES) {
          const keys = handshake.finish(input.subarray(0, ACT3_BYTES))
          opener = new RecordOpener(keys.toRelay)
          this.sealer = new RecordSealer(keys.toClient)
          input = input.subarray(ACT3_BYTES)
          step = 2
        }
        if (step !== 2) return
        const bytes = input
        input = Buffer.alloc(0)
        opener.push(bytes, plaintext => reader.push(plaintext, array => {
          const message = parse(array, 'client')!
          this.received.push(message)
          onMessage(message, this)
        }))
      })
    })
    this.server.listen(0, '127.0.0.1')
    await once(this.server, 'listening')
    return `ac://${this.identity.hex}@127.0.0.1:${(this.server.address() as AddressInfo).port}`
  }

  send(...messages: Value[]): void { this.raw(Buffer.concat(messages.map(message => frame(encode(message))))) }
  raw(plaintext: Buffer): void { this.socket.write(this.sealer.seal(plaintext)) }
}

/** Runs a client against `answers` to HELLO; resolves with how it ended, and what CLOSE it sent. */
async function outcome(...answers: Value[]): Promise<{ end: End, close: Message | undefined }> {
  const relay = new FakeRelay()
  const address = await relay.listen((message, r) => {
    if (message[0] === 0) r.send(...answers)
    if (message[0] === 26) r.socket.end()
  })
  const client = new Client({ relays: address, reconnect: false })
  const ended = new Promise<End>(resolve => client.once('disconnected', resolve))
  client.connect().catch(() => {})
  const end = await ended
  if (!relay.socket.closed) await once(relay.socket, 'close')
  relay.server.close()
  return { end, close: relay.received.find(message => message[0] === 26) }
}

describe('client against a false relay', () => {
  const faults: Array<[name: string, code: keyof typeof CODES, ...answers: Value[]]> = [
    ['JOINED before WELCOME', 'unexpected_message', [3, 'a', 1, 1, 0, []]],
    ['an extension before WELCOME', 'unexpected_message', [64]],
    ['WELCOME of another revision', 'unsupported_revision', [1, 2, Buffer.alloc(8), new Map(), [], []]],
    ['WELCOME twice', 'unexpected_message', WELCOME, WELCOME],
    ['a client message', 'unexpected_message', WELCOME, [24]],
    ['REJECT of an ordinal that was never sent', 'protocol_error', WELCOME, [16, 1, 1, 32, 0]],
    ['PAUSE with target null', 'protocol_error', WELCOME, [18, null, 1, 100]],
    ['an abort without an open frame', 'protocol_error', WELCOME, [23, 1, 2, Buffer.alloc(0)]],
    ['CLOSE that does not match the CDDL', 'protocol_error', WELCOME, [26, 0]],
  ]
  for (const [name, code, ...answers] of faults) {
    it(`answers ${name} with CLOSE ${code}`, async () => {
      const { end, close } = await outcome(...answers)
      assert.equal(close?.[1], CODES[code])
      assert.equal(end.code, CODES[code])
      assert.equal(end.by, 'client')
    })
  }

  it('answers a frame that is too long with CLOSE frame_too_large', async () => {
    const relay = new FakeRelay()
    const address = await relay.listen((message, r) => {
      if (message[0] === 0) r.raw(Buffer.from('00010001', 'hex'))
      if (message[0] === 26) r.socket.end()
    })
    const client = new Client({ relays: address, reconnect: false })
    client.connect().catch(() => {})
    const [end] = await once(client, 'disconnected') as [End]
    relay.server.close()
    assert.equal(end.code, CODES.frame_too_large)
  })

  it('answers CLOSE with CLOSE 0, and obeys its code', async () => {
    const { end, close } = await outcome(WELCOME, [22, CODES.replaced, 0, 0, []], [26, CODES.replaced, 'twice'], [24])
    assert.equal(close?.[1], 0)
    assert.deepEqual({ code: end.code, by: end.by }, { code: CODES.replaced, by: 'relay' })
  })

  it('does not connect to another key', async () => {
    const relay = new FakeRelay()
    const address = await relay.listen(() => {})
    const client = new Client({ relays: address.replace(relay.identity.hex, KEY.toString('hex')) })
    await assert.rejects(client.connect(), /another key/)
    assert.deepEqual(relay.received, [])
    relay.server.close()
  })

  it('ignores extensions and unknown contents, answers PING, pauses a class that is not taken', async () => {
    const relay = new FakeRelay()
    const paused = new Promise<void>(resolve => {
      void relay.listen((message, r) => {
        if (message[0] === 0) {
          const big = Buffer.alloc(400_000)
          const fragments = (payload: Buffer): Value[] => {
            const inner = encode([9, 0, KEY, 'a', 1, 0, payload])
            const list: Value[] = []
            for (let at = 0; at < inner.length; at += 16_320) list.push([23, 1, at + 16_320 >= inner.length ? 1 : 0, inner.subarray(at, at + 16_320)])
            return list
          }
          r.send(WELCOME, [64, 'x'], [9, 0, KEY, 'a', 1, 23, Buffer.alloc(3)], [20, 1, Buffer.of(5)])
          for (let i = 0; i < 4; i++) for (const piece of fragments(big)) r.send(piece)
        }
        if (message[0] === 18) { assert.deepEqual(message, [18, null, 1, 0]); release() }
        if (message[0] === 19) resolve()
        if (message[0] === 26) r.send([26, 0, ''])
      }).then(address => {
        client = new Client({ relays: address, reconnect: false, onMessage: async () => { taken++; await gate } })
        void client.connect()
      })
    })
    let client!: Client
    let taken = 0
    let release!: () => void
    const gate = new Promise<void>(resolve => { release = resolve })
    await paused
    while (taken < 4) await new Promise(resolve => setImmediate(resolve))
    assert.equal(client.ignored, 1)
    assert.ok(relay.received.some(message => message[0] === 21 && message[1].equals(Buffer.of(5))))
    await client.close()
    relay.server.close()
  })

  it('keeps to contracts, and overtakes with what is urgent', async () => {
    const relay = new FakeRelay()
    const arrivals: Array<{ cls: number, at: number }> = []
    const address = await relay.listen((message, r) => {
      if (message[0] === 0) r.send([1, 1, Buffer.alloc(8), new Map(), [[1, 10_000, 2_000, 100]], []])
      if (message[0] === 6) arrivals.push({ cls: message[2], at: performance.now() })
      if (message[0] === 20) r.send([21, message[2]])
      if (message[0] === 26) r.send([26, 0, ''])
    })
    const client = new Client({ relays: address, reconnect: false })
    await client.connect()
    const outcomes = [...Array(5)].map(() => client.publish('a', Buffer.alloc(990)))
    outcomes.push(client.publish('a', Buffer.alloc(990), { cls: 5 }))
    assert.deepEqual(await client.publish('a', Buffer.alloc(2_500)), { kind: 'refused', code: CODES.payload_too_large, retryAfterMs: 0 })
    for (const one of await Promise.all(outcomes)) assert.equal(one.kind, 'accepted')
    assert.equal(arrivals[0].cls, 5)
    const data = arrivals.filter(arrival => arrival.cls === 1)
    assert.equal(data.length, 5)
    const span = data[4].at - data[0].at
    assert.ok(span > 270 && span < 600, `five messages of 1,001 bytes took ${span} ms`) // 3,005 bytes at 10 kB/s beyond the burst
    await client.close()
    relay.server.close()
  })
})
