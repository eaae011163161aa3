// A client without any sense: it sends what it is told, and keeps what it gets.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { once } from 'node:events'
import { decode, encode, type Value } from '../cbor.js'
import { Identity } from '../crypto.js'
import { CODES, codeName } from '../errors.js'
import { frame, FrameReader } from '../frames.js'
import { ClientHandshake } from '../handshake.js'
import { parseAddress } from '../messages.js'
import { RecordOpener, RecordSealer } from '../records.js'

export const RELAY = process.env.AC_RELAY
export const EMPTY = Buffer.alloc(0)
export type Frame = Value[]

export class Raw {
  readonly frames: Frame[] = []
  ended = false
  sealer!: RecordSealer
  private constructor(readonly socket: Socket, readonly identity: Identity) {}

  static async open(identity = new Identity()): Promise<Raw> {
    const address = parseAddress(RELAY!)
    const socket = 'path' in address ? connect(address.path) : connect(address.port, address.host)
    socket.setNoDelay(true)
    const raw = new Raw(socket, identity)
    const handshake = new ClientHandshake(identity, address.key)
    socket.write(handshake.act1())
    let input = EMPTY
    socket.on('error', () => {})
    socket.on('close', () => { raw.ended = true })
    while (input.length < 128) input = Buffer.concat([input, (await once(socket, 'data'))[0] as Buffer])
    const { act3, keys } = handshake.act3(input)
    raw.sealer = new RecordSealer(keys.toRelay)
    const opener = new RecordOpener(keys.toClient)
    const reader = new FrameReader(() => 1_049_600)
    socket.on('data', (chunk: Buffer) => opener.push(chunk, plain => reader.push(plain, array => raw.frames.push(decode(array) as Frame))))
    socket.write(act3)
    return raw
  }

  /** With HELLO, and WELCOME taken. */
  static async greeted(rooms: Value[] = [], identity?: Identity): Promise<Raw> {
    const raw = await Raw.open(identity)
    raw.send(hello(rooms))
    await raw.until(1)
    return raw
  }

  bytes(plaintext: Buffer): void { this.socket.write(this.sealer.seal(plaintext)) }
  send(...messages: Value[]): void { this.bytes(Buffer.concat(messages.map(message => frame(encode(message))))) }

  /** The first frame of a kind, taken out. */
  async until(kind: number, ms = 3_000): Promise<Frame> {
    for (const end = Date.now() + ms; ;) {
      const index = this.frames.findIndex(one => one[0] === kind)
      if (index >= 0) return this.frames.splice(index, 1)[0]
      assert.ok(Date.now() < end && !this.ended, `no message of kind ${kind}; there are ${this.frames.map(one => one[0]).join(' ')}`)
      await new Promise(resolve => setTimeout(resolve, 5))
    }
  }

  async closes(code: keyof typeof CODES): Promise<void> {
    const close = await this.until(26)
    assert.equal(codeName(close[1] as number), code)
    this.socket.destroy()
  }

  /** Everything before this was taken without a fault. */
  async lives(): Promise<void> {
    const token = randomBytes(4)
    this.send([20, 1, token])
    const pong = await this.until(21)
    assert.deepEqual(Buffer.from(pong[1] as Uint8Array), token)
  }
}

export const hello = (rooms: Value[] = [], revision = 1, incarnation: Value = [1, randomBytes(8)], connection = 1, attributes: Value = new Map()): Value =>
  [0, revision, incarnation, connection, attributes, rooms]
