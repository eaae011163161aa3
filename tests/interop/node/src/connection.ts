// One connection to a relay (sessions.md, the client's state machine).
import { connect as dial, type Socket } from 'node:net'
import { randomBytes } from 'node:crypto'
import { CODES, type CodeName, codeName, ProtocolFault } from './errors.js'
import { Assembler, FIRST_FRAME_LIMIT, frame, FrameReader } from './frames.js'
import { ACT2_BYTES, ClientHandshake, WrongKeyError } from './handshake.js'
import type { Identity } from './crypto.js'
import * as m from './messages.js'
import type { Item, Outbox } from './outbox.js'
import { MAX_PLAINTEXT, RecordOpener, RecordSealer } from './records.js'

export interface Limits {
  payload_bytes: number, frame_bytes: number, rooms: number, room_members: number, page_bytes: number, keepalive_ms: number, drop_ms: number
}
export const DEFAULT_LIMITS: Limits = {
  payload_bytes: 1_048_576, frame_bytes: 1_049_600, rooms: 256, room_members: 10_000, page_bytes: 49_152, keepalive_ms: 25_000, drop_ms: 60_000,
}

/** How a connection ended: `code` of a CLOSE, or null if it broke. */
export interface End {
  readonly code: number | null
  readonly by: 'relay' | 'client' | 'nobody'
  readonly detail: string
  readonly wrongKey: boolean
  readonly goaway: m.Goaway | null
}

export interface ConnectionHandler {
  welcome(message: m.Welcome, limits: Limits): void
  message(message: m.RelayMessage): void
  ended(end: End): void
}

interface ControlFrame {
  readonly bytes: Buffer
  readonly order: number
  readonly barrier: boolean
  /** JOIN and MEMBERS may not overtake a waiting barrier. */
  readonly ordered: boolean
  readonly pong: number | null
  readonly picked?: () => void
}

type State = 'AWAIT_ACT2' | 'AWAIT_WELCOME' | 'OPEN' | 'CLOSE_SENT' | 'DRAINING' | 'GONE'

const WELCOME_DEADLINE = 10_000
const CLOSING_DEADLINE = 5_000
const FLUSH_MESSAGES = 128
const FLUSH_BYTES = 524_288
const FLUSH_AFTER_MS = 10
const RECORD_TARGET = 49_000
const REMEMBERED = 4_096
const MAX_PINGS = 8

let orders = 0
/** Numbers frames and items in the order in which they are queued. */
export const nextOrder = (): number => ++orders

export class Connection {
  state: State = 'AWAIT_ACT2'
  limits: Limits = DEFAULT_LIMITS
  epoch: Buffer | null = null
  goaway: m.Goaway | null = null

  private readonly socket: Socket
  private readonly handshake: ClientHandshake
  private act2 = Buffer.alloc(0)
  private opener: RecordOpener | null = null
  private sealer: RecordSealer | null = null
  private readonly reader = new FrameReader(() => this.epoch === null ? FIRST_FRAME_LIMIT : this.limits.frame_bytes)
  private readonly assembler = new Assembler('relay', () => this.epoch === null ? FIRST_FRAME_LIMIT : this.limits.frame_bytes)
  private control: ControlFrame[] = []

  private ordinal = 0
  private unflushedBytes = 0
  private readonly unflushed = new Map<number, Item>()
  private readonly accepted = new Map<number, Item>()
  private flushes: Array<{ token: string, upTo: number, answered: (() => void) | null }> = []
  private flushTimer: NodeJS.Timeout | null = null
  private pings: Array<{ token: string, answered: (() => void) | null }> = []

  private lastReceived = performance.now()
  private keepalivePingAt: number | null = null
  private ticker: NodeJS.Timeout | null = null
  private deadline: NodeJS.Timeout | null = null
  private wakeTimer: NodeJS.Timeout | null = null
  private pumpScheduled = false
  private faulted = false
  private relayClose: m.Close | null = null
  private clientCode: number | null = null
  private endDetail = ''
  private wrongKey = false

  constructor(
    address: m.Address, identity: Identity, private readonly hello: m.Hello,
    private readonly outbox: Outbox, private readonly handler: ConnectionHandler,
  ) {
    this.handshake = new ClientHandshake(identity, address.key)
    this.socket = 'path' in address ? dial({ path: address.path }) : dial({ host: address.host, port: address.port })
    this.socket.setNoDelay(true)
    this.socket.on('connect', () => this.socket.write(this.handshake.act1()))
    this.socket.on('data', chunk => this.received(chunk))
    this.socket.on('drain', () => this.pump())
    this.socket.on('error', error => { this.endDetail ||= error.message })
    this.socket.on('end', () => { this.endDetail ||= 'the stream ended without CLOSE' })
    this.socket.on('close', () => this.gone())
    this.arm(WELCOME_DEADLINE, 'no WELCOME in time')
  }

  // ---- receiving -------------------------------------------------------------------------------------------------

  private received(chunk: Buffer): void {
    this.lastReceived = performance.now()
    this.keepalivePingAt = null
    if (this.state === 'GONE') return
    try {
      if (this.opener === null) {
        chunk = this.takeAct2(chunk)
        if (this.opener === null) return
      }
      if (this.faulted || this.relayClose !== null) return
      this.opener!.push(chunk, plaintext => this.reader.push(plaintext, array => this.takeFrame(array)))
    } catch (error) {
      if (error instanceof StopReading) return
      if (error instanceof ProtocolFault) this.fail(error.code, error.message)
      else if (this.opener === null) {
        this.wrongKey = error instanceof WrongKeyError
        this.break((error as Error).message)
      } else this.fail('internal_error', 'a fault in the client', error as Error)
    }
  }

  /** Returns what follows act 2. */
  private takeAct2(chunk: Buffer): Buffer {
    const missing = ACT2_BYTES - this.act2.length
    this.act2 = Buffer.concat([this.act2, chunk.subarray(0, missing)])
    if (this.act2.length < ACT2_BYTES) return chunk.subarray(missing)
    const { act3, keys } = this.handshake.act3(this.act2)
    this.sealer = new RecordSealer(keys.toRelay)
    this.opener = new RecordOpener(keys.toClient)
    this.socket.write(Buffer.concat([act3, this.sealed(frame(m.serialize(this.hello)))]))
    this.state = 'AWAIT_WELCOME'
    return chunk.subarray(missing)
  }

  private takeFrame(array: Buffer): void {
    const parsed = m.parse(array, 'relay')
    if (this.epoch === null) {
      const kind = parsed?.[0]
      if (kind !== 1 && kind !== 22 && kind !== 26) throw new ProtocolFault('unexpected_message', 'the first frame is not WELCOME')
    }
    if (parsed === null) return
    const message = this.assembler.take(parsed) as m.RelayMessage | null
    if (message !== null) this.takeMessage(message)
  }

  private takeMessage(message: m.RelayMessage): void {
    switch (message[0]) {
      case 1: return this.takeWelcome(message)
      case 16: return this.takeReject(message)
      case 20: return this.queueControl([21, Buffer.from(message[2])], { pong: message[1] })
      case 21: return this.takePong(message)
      case 22: this.goaway = message; break
      case 26: return this.takeClose(message)
    }
    this.handler.message(message)
  }

  private takeWelcome(message: m.Welcome): void {
    if (this.epoch !== null) throw new ProtocolFault('unexpected_message', 'a second WELCOME')
    if (message[1] !== this.hello[1]) throw new ProtocolFault('unsupported_revision', 'WELCOME of another revision')
    const limits = { ...DEFAULT_LIMITS }
    for (const [name, value] of message[3]) {
      if (name in limits && value > 0) limits[name as keyof Limits] = Number(value)
    }
    this.limits = limits
    this.epoch = Buffer.from(message[2])
    this.disarm()
    if (this.state === 'AWAIT_WELCOME') this.state = 'OPEN'
    this.outbox.setContracts(null, message[4])
    this.ticker = setInterval(() => this.tick(), Math.min(1_000, limits.keepalive_ms / 4))
    this.handler.welcome(message, limits)
    this.schedule()
  }

  private takeReject([, first, count, code, retryAfter]: m.Reject): void {
    if (BigInt(first) + BigInt(count) - 1n > BigInt(this.ordinal)) throw new ProtocolFault('protocol_error', 'REJECT of an ordinal that was not sent')
    const retryAfterMs = Number(retryAfter)
    const end = Number(first) + Number(count)
    for (let ordinal = Number(first); ordinal < end; ordinal++) {
      const pending = this.unflushed.get(ordinal)
      if (pending !== undefined) {
        this.unflushed.delete(ordinal)
        pending.settle({ kind: 'refused', code: Number(code), retryAfterMs })
        continue
      }
      const late = this.accepted.get(ordinal)
      if (late === undefined) continue
      this.accepted.delete(ordinal)
      late.late?.(Number(code), retryAfterMs)
    }
  }

  private takePong([, token]: m.Pong): void {
    const name = token.toString('hex')
    const ping = this.pings.findIndex(one => one.token === name)
    if (ping >= 0) for (const one of this.pings.splice(0, ping + 1)) one.answered?.()
    const flush = this.flushes.findIndex(one => one.token === name)
    if (flush < 0) return
    const answered = this.flushes.splice(0, flush + 1)
    const upTo = answered.at(-1)!.upTo
    for (const [ordinal, item] of this.unflushed) {
      if (ordinal > upTo) break
      this.unflushed.delete(ordinal)
      this.remember(ordinal, item)
      item.settle({ kind: 'accepted' })
    }
    for (const one of answered) one.answered?.()
    this.considerFlush()
  }

  private remember(ordinal: number, item: Item): void {
    this.accepted.set(ordinal, item)
    if (this.accepted.size <= REMEMBERED) return
    for (const oldest of this.accepted.keys()) {
      this.accepted.delete(oldest)
      break
    }
  }

  private takeClose(message: m.Close): void {
    this.relayClose = message
    if (this.state === 'CLOSE_SENT') {
      this.finish()
    } else {
      // What is queued waits for the next connection.
      this.control = []
      this.state = 'DRAINING'
      this.arm(CLOSING_DEADLINE, 'closing deadline')
      this.socket.write(this.sealed(frame(m.serialize([26, 0, '']))))
      this.finish()
    }
    throw new StopReading()
  }

  // ---- ending ----------------------------------------------------------------------------------------------------

  /** The wanted end: CLOSE 0 behind everything that is queued. */
  close(): void {
    if (this.state === 'AWAIT_ACT2') return this.break('closed before the handshake')
    if (this.state !== 'AWAIT_WELCOME' && this.state !== 'OPEN') return
    this.clientCode = 0
    this.queueControl([26, 0, ''], { barrier: true })
    this.state = 'CLOSE_SENT'
    this.arm(CLOSING_DEADLINE, 'closing deadline')
  }

  private fail(code: CodeName, detail: string, cause?: Error): void {
    this.faulted = true
    this.endDetail ||= cause === undefined ? detail : `${detail}: ${cause.stack}`
    if (this.state !== 'AWAIT_WELCOME' && this.state !== 'OPEN') return
    this.clientCode = CODES[code]
    this.control = []
    this.state = 'CLOSE_SENT'
    this.arm(CLOSING_DEADLINE, 'closing deadline')
    this.socket.write(this.sealed(frame(m.serialize([26, CODES[code], detail]))))
    this.socket.end()
  }

  private finish(): void {
    this.socket.end()
    this.arm(CLOSING_DEADLINE, 'closing deadline')
    setImmediate(() => { if (this.socket.writableLength === 0) this.socket.destroy() })
  }

  break(detail: string): void {
    this.endDetail ||= detail
    this.socket.destroy()
  }

  private gone(): void {
    if (this.state === 'GONE') return
    this.state = 'GONE'
    this.disarm()
    if (this.ticker !== null) clearInterval(this.ticker)
    if (this.wakeTimer !== null) clearTimeout(this.wakeTimer)
    if (this.flushTimer !== null) clearTimeout(this.flushTimer)
    this.outbox.disconnected()
    for (const item of this.unflushed.values()) item.settle({ kind: 'unknown' })
    this.unflushed.clear()
    const code = this.relayClose !== null && this.clientCode === null ? Number(this.relayClose[1]) : this.clientCode
    this.handler.ended({
      code,
      by: this.clientCode !== null ? 'client' : this.relayClose !== null ? 'relay' : 'nobody',
      detail: this.endDetail || (this.relayClose === null ? '' : this.relayClose[2] || codeName(Number(this.relayClose[1]))),
      wrongKey: this.wrongKey,
      goaway: this.goaway,
    })
  }

  private arm(ms: number, detail: string): void {
    this.disarm()
    this.deadline = setTimeout(() => this.break(detail), ms)
  }

  private disarm(): void {
    if (this.deadline !== null) clearTimeout(this.deadline)
    this.deadline = null
  }

  // ---- keepalive, flush ------------------------------------------------------------------------------------------

  private tick(): void {
    const now = performance.now()
    const { keepalive_ms, drop_ms } = this.limits
    if (this.keepalivePingAt !== null && now - this.keepalivePingAt >= drop_ms - keepalive_ms) {
      this.break('nothing was received for too long')
    } else if (this.keepalivePingAt === null && now - this.lastReceived >= keepalive_ms && this.state === 'OPEN') {
      this.keepalivePingAt = now
      this.ping()
    }
  }

  /** A keepalive PING; resolves with its PONG. Never resolves on a connection that ends. */
  ping(): Promise<void> {
    if (this.pings.length >= MAX_PINGS) return Promise.resolve()
    const token = randomBytes(8)
    return new Promise(resolve => {
      this.pings.push({ token: token.toString('hex'), answered: resolve })
      this.queueControl([20, 0, token])
    })
  }

  private considerFlush(): void {
    if (this.unflushed.size === 0 || this.flushes.length >= 2) return
    const unasked = this.ordinal - (this.flushes.at(-1)?.upTo ?? 0)
    if (unasked >= FLUSH_MESSAGES || this.unflushedBytes >= FLUSH_BYTES) this.flush()
    else if (unasked > 0) this.flushTimer ??= setTimeout(() => this.flush(), FLUSH_AFTER_MS)
  }

  /** Asks for the fate of what has left. What is still in the outbox has not been queued as a frame yet. */
  flush(): void {
    if (this.flushTimer !== null) clearTimeout(this.flushTimer)
    this.flushTimer = null
    if (this.state !== 'OPEN') return
    const flush = { token: randomBytes(8).toString('hex'), upTo: this.ordinal, answered: null }
    this.flushes.push(flush)
    this.unflushedBytes = 0
    this.queueControl([20, 1, Buffer.from(flush.token, 'hex')], { picked: () => { flush.upTo = this.ordinal } })
  }

  // ---- sending ---------------------------------------------------------------------------------------------------

  queueControl(message: m.ClientMessage, options: { barrier?: boolean, ordered?: boolean, pong?: number, picked?: () => void } = {}): void {
    if (this.state === 'CLOSE_SENT' || this.state === 'DRAINING' || this.state === 'GONE') return
    const { barrier = false, ordered = false, pong = null, picked } = options
    if (pong !== null) this.control = this.control.filter(queued => queued.pong !== pong)
    this.control.push({ bytes: frame(m.serialize(message)), order: nextOrder(), barrier, ordered, pong, picked })
    this.schedule()
  }

  /** Lets everything that becomes ready in this turn leave together. */
  schedule(): void {
    if (this.pumpScheduled) return
    this.pumpScheduled = true
    setImmediate(() => {
      this.pumpScheduled = false
      this.pump()
    })
  }

  /** Seals as late as possible: one record, and the next when the transport has taken it. */
  private pump(): void {
    if (this.epoch === null || this.sealer === null || this.faulted || this.relayClose !== null) return
    if (this.state !== 'OPEN' && this.state !== 'CLOSE_SENT') return
    for (let records = 0; records < 32; records++) {
      if (this.socket.writableLength > 0 || this.socket.destroyed) return
      const parts: Buffer[] = []
      let total = 0
      while (total < RECORD_TARGET) {
        const bytes = this.nextFrame()
        if (bytes === null) break
        parts.push(bytes)
        total += bytes.length
      }
      if (total === 0) return this.wakeLater()
      this.socket.write(this.sealed(Buffer.concat(parts, total)))
      this.considerFlush()
    }
    this.schedule()
  }

  private wakeLater(): void {
    if (this.wakeTimer !== null) clearTimeout(this.wakeTimer)
    this.wakeTimer = null
    if (this.outbox.wakeAt === Infinity) return
    this.wakeTimer = setTimeout(() => this.pump(), Math.max(1, Math.ceil(this.outbox.wakeAt - performance.now())))
  }

  private nextFrame(): Buffer | null {
    const control = this.nextControl()
    if (control !== null) return control
    const piece = this.outbox.next()
    if (piece === null) return null
    if (piece.completes !== null) {
      this.ordinal++
      this.unflushed.set(this.ordinal, piece.completes)
      this.unflushedBytes += piece.completes.size
      piece.completes.sent()
    }
    return piece.bytes
  }

  private nextControl(): Buffer | null {
    let waiting = false
    for (let i = 0; i < this.control.length; i++) {
      const queued = this.control[i]
      if (waiting && (queued.barrier || queued.ordered)) continue
      if (queued.barrier && this.outbox.holdsBefore(queued.order)) {
        waiting = true
        continue
      }
      this.control.splice(i, 1)
      queued.picked?.()
      return queued.bytes
    }
    return null
  }

  private sealed(plaintext: Buffer): Buffer {
    const records: Buffer[] = []
    for (let at = 0; at < plaintext.length; at += MAX_PLAINTEXT) records.push(this.sealer!.seal(plaintext.subarray(at, at + MAX_PLAINTEXT)))
    return Buffer.concat(records)
  }
}

/** Unwinds the readers after CLOSE: nothing that follows it is processed. */
class StopReading extends Error {}
