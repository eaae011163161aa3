// reliable.md, unicast: send until acknowledged, hand over once and in order.
import { randomBytes } from 'node:crypto'
import { decode, encode, type Value } from './cbor.js'
import { mayRetry } from './errors.js'
import type { Outcome } from './outbox.js'

export type ReliableOutcome = 'delivered' | 'expired' | 'unknown' | { readonly refused: string }

/** What this module needs of its client. */
export interface Carrier {
  isConnected(): boolean
  /** Sends a payload by SEND. `build` gives it when it leaves; null: it need not leave any more. */
  carry(peer: Buffer, cls: number, content: 1 | 2, size: number, build: () => Buffer | null, sent: () => void, settle: (outcome: Outcome) => void): void
  /** Hands a message over: `take` is called when the application is ready, and says whether it still is to have it. */
  handOver(sender: Buffer, cls: number, content: number, payload: Buffer, take: () => boolean): void
}

const CONTROL_CLASS = 6
const WINDOW_BYTES = 1_048_576
const WINDOW_MESSAGES = 1_024
const HELD_BYTES = 8_388_608
const BUFFER_BYTES = 4_194_304
const AHEAD = 4_096n
const STREAMS = 16_384
const RANGES = 32
const LEAST_TIMEOUT = 400
const FIRST_TIMEOUT = 1_000
const MOST_TIMEOUT = 5_000
const ACK_UNTAKEN_MS = 100
const REFUSAL_EVERY_MS = 1_000
export const MAX_EXPIRES_MS = 86_400_000
const REFUSALS = ['not_offered', 'stale', 'busy']

// ---- payloads (reliable.cddl) ------------------------------------------------------------------------------------

type Range = [first: bigint, last: bigint]

export type Control =
  | { readonly kind: 'ack', readonly receiver: Buffer, readonly sender: Buffer, readonly cls: number, readonly next: bigint, readonly taken: Range[], readonly held: Range[] }
  | { readonly kind: 'refusal', readonly sender: Buffer, readonly cls: number, readonly reason: number }
  | { readonly kind: 'mark', readonly room: string | null, readonly incarnation: Buffer, readonly streams: Array<{ cls: number, base: bigint, next: bigint }> }

export interface Segment { readonly incarnation: Buffer, readonly sequence: bigint, readonly base: bigint, readonly expiresMs: number, readonly content: number, readonly payload: Buffer }

class Mismatch extends Error {}

const uint = (v: Value): bigint => {
  if ((typeof v !== 'number' && typeof v !== 'bigint') || v < 0) throw new Mismatch()
  return BigInt(v)
}
const sequence = (v: Value): bigint => {
  const n = uint(v)
  if (n < 1n) throw new Mismatch()
  return n
}
const upTo = (v: Value, most: number): number => {
  const n = uint(v)
  if (n > BigInt(most)) throw new Mismatch()
  return Number(n)
}
const bytes = (v: Value, length?: number): Buffer => {
  if (!(v instanceof Uint8Array) || (length !== undefined && v.length !== length)) throw new Mismatch()
  return Buffer.from(v)
}
const array = (v: Value, least: number, most: number): Value[] => {
  if (!Array.isArray(v) || v.length < least || v.length > most) throw new Mismatch()
  return v
}
const ranges = (v: Value): Range[] => {
  let after = -1n
  return array(v, 0, RANGES).map(item => {
    const [first, last] = array(item, 2, 2).map(sequence)
    if (last < first || first <= after) throw new Mismatch() // at least one sequence between two ranges
    after = last + 1n
    return [first, last]
  })
}

/** null: to be ignored. */
function attempt<T>(payload: Buffer, read: (value: Value) => T): T | null {
  try {
    return read(decode(payload))
  } catch {
    return null
  }
}

export const parseSegment = (payload: Buffer): Segment | null => attempt(payload, value => {
  const [incarnation, seq, base, expires, content, data] = array(value, 6, 6)
  const segment = {
    incarnation: bytes(incarnation, 16), sequence: sequence(seq), base: sequence(base), expiresMs: upTo(expires, MAX_EXPIRES_MS),
    content: upTo(content, 5), payload: bytes(data),
  }
  if (segment.expiresMs < 1 || ![0, 3, 4, 5].includes(segment.content) || segment.base > segment.sequence) throw new Mismatch()
  return segment
})

export const parseControl = (payload: Buffer): Control | null => attempt(payload, value => {
  const items = array(value, 1, 8)
  switch (items[0]) {
    case 0: {
      const [, receiver, sender, cls, next, taken, held] = array(items, 7, 7)
      return { kind: 'ack', receiver: bytes(receiver, 16), sender: bytes(sender, 16), cls: upTo(cls, 6), next: sequence(next), taken: ranges(taken), held: ranges(held) }
    }
    case 1: {
      const [, sender, cls, reason] = array(items, 4, 4)
      return { kind: 'refusal', sender: bytes(sender, 16), cls: upTo(cls, 6), reason: Number(uint(reason)) }
    }
    case 2: {
      const [, room, incarnation, streams] = array(items, 4, 4)
      if (room !== null && (typeof room !== 'string' || Buffer.byteLength(room) < 1 || Buffer.byteLength(room) > 128)) throw new Mismatch()
      return {
        kind: 'mark', room, incarnation: bytes(incarnation, 16),
        streams: array(streams, 1, 7).map(stream => {
          const [cls, base, next] = array(stream, 3, 3)
          return { cls: upTo(cls, 6), base: sequence(base), next: sequence(next) }
        }),
      }
    }
    default: throw new Mismatch() // request and repair belong to rooms
  }
})

let lastStart = 0n
export function newIncarnation(): Buffer {
  const now = BigInt(Date.now())
  lastStart = now > lastStart ? now : lastStart + 1n
  const incarnation = Buffer.alloc(16)
  incarnation.writeBigUInt64BE(lastStart)
  randomBytes(8).copy(incarnation, 8)
  return incarnation
}

const covers = (list: Range[], n: bigint): boolean => list.some(([first, last]) => n >= first && n <= last)
const clock = (): number => performance.now()

// ---- sending -----------------------------------------------------------------------------------------------------

interface Outgoing {
  readonly sequence: bigint
  readonly content: number
  readonly payload: Buffer
  readonly deadline: number
  readonly end: (outcome: ReliableOutcome) => void
  state: 'queued' | 'carried' | 'sent' | 'held'
  /** Segments that left and that the relay did not refuse, so they may have arrived. */
  mayHaveArrived: number
  /** A segment may have gone to an incarnation of the receiver that is not the present one. */
  toAnother: boolean
  sentAt: number
  sentOrder: number
  transmissions: number
}

class SendStream {
  next = 1n
  messages: Outgoing[] = []
  receiver: Buffer | null = null
  waitUntil = 0
  /** Only one segment until an ack has come. */
  probing = true
  timeout = FIRST_TIMEOUT
  srtt: number | null = null
  rttvar = 0
  refusals = 0
  timerFrom = 0
  expectsAck = false

  constructor(readonly peer: Buffer, readonly cls: number) {}

  get base(): bigint { return this.messages[0]?.sequence ?? this.next }

  estimate(rtt: number): void {
    if (this.srtt === null) [this.srtt, this.rttvar] = [rtt, rtt / 2]
    else {
      this.rttvar = 0.75 * this.rttvar + 0.25 * Math.abs(this.srtt - rtt)
      this.srtt = 0.875 * this.srtt + 0.125 * rtt
    }
  }

  resetTimeout(): void {
    const estimate = this.srtt === null ? FIRST_TIMEOUT : this.srtt + 4 * this.rttvar
    this.timeout = Math.min(MOST_TIMEOUT, Math.max(LEAST_TIMEOUT, estimate))
  }
}

export class ReliableSender {
  readonly incarnation = newIncarnation()
  private readonly streams = new Map<string, SendStream>()
  private heldBytes = 0
  private waiting: Array<{ bytes: number, admit: () => void }> = []
  private stopped = false
  private orders = 0
  private ticker: NodeJS.Timeout | null = null

  constructor(private readonly carrier: Carrier) {}

  get pending(): number {
    let n = this.waiting.length
    for (const stream of this.streams.values()) n += stream.messages.length
    return n
  }

  async send(peer: Buffer, cls: number, content: number, payload: Buffer, expiresMs: number): Promise<ReliableOutcome> {
    const deadline = clock() + Math.min(Math.max(expiresMs, 1), MAX_EXPIRES_MS)
    await new Promise<void>(admit => {
      this.waiting.push({ bytes: payload.length, admit })
      this.admit()
    })
    if (this.stopped) return 'expired'
    this.ticker ??= setInterval(() => this.tick(), 50)
    const name = `${cls} ${peer.toString('hex')}`
    let stream = this.streams.get(name)
    if (stream === undefined) this.streams.set(name, stream = new SendStream(peer, cls))
    return new Promise(resolve => {
      const message: Outgoing = {
        sequence: stream.next++, content, payload, deadline, state: 'queued', mayHaveArrived: 0, toAnother: false, sentAt: 0, sentOrder: 0, transmissions: 0,
        end: outcome => {
          this.heldBytes -= payload.length
          this.admit()
          resolve(outcome)
        },
      }
      stream.messages.push(message)
      this.pump(stream)
    })
  }

  /** In order, as far as there is room. */
  private admit(): void {
    for (let first = this.waiting[0]; first !== undefined; first = this.waiting[0]) {
      if (!this.stopped && this.heldBytes > 0 && this.heldBytes + first.bytes > HELD_BYTES) return
      this.waiting.shift()
      this.heldBytes += first.bytes
      first.admit()
    }
  }

  connected(): void {
    for (const stream of this.streams.values()) {
      this.requeue(stream)
      stream.waitUntil = 0
      this.pump(stream)
    }
  }

  /** The client has taken segments that had not left out of its outbox. */
  disconnected(): void { for (const stream of this.streams.values()) this.requeue(stream) }

  stop(): void {
    this.stopped = true
    this.rest()
    this.admit()
    for (const stream of this.streams.values()) {
      for (const message of stream.messages.splice(0)) message.end(message.mayHaveArrived > 0 ? 'unknown' : 'expired')
    }
  }

  onAck(peer: Buffer, ack: Control & { kind: 'ack' }): void {
    const stream = this.streams.get(`${ack.cls} ${peer.toString('hex')}`)
    if (stream === undefined || !ack.sender.equals(this.incarnation) || ack.next > stream.next) return
    if (stream.receiver === null || !stream.receiver.equals(ack.receiver)) {
      if (stream.receiver !== null) {
        for (const message of stream.messages) {
          if (message.transmissions > 0) message.toAnother = true
          if (message.state === 'sent' || message.state === 'held') message.state = 'queued'
        }
      }
      stream.receiver = ack.receiver
    }
    let latest = 0
    const left: Outgoing[] = []
    for (const message of stream.messages) {
      const taken = message.sequence < ack.next || covers(ack.taken, message.sequence)
      const held = !taken && covers(ack.held, message.sequence)
      if (taken || held) {
        latest = Math.max(latest, message.sentOrder)
        if (message.transmissions === 1 && message.state === 'sent') stream.estimate(clock() - message.sentAt)
      }
      if (held) message.state = 'held'
      if (taken) message.end('delivered')
      else left.push(message)
    }
    stream.messages = left
    for (const message of left) if (message.state === 'sent' && message.sentOrder < latest) message.state = 'queued'
    stream.probing = false
    stream.refusals = 0
    stream.resetTimeout()
    stream.timerFrom = clock()
    if (ack.next < stream.base && ack.held.length > 0) this.mark(stream)
    this.pump(stream)
  }

  onRefusal(peer: Buffer, refusal: Control & { kind: 'refusal' }): void {
    const stream = this.streams.get(`${refusal.cls} ${peer.toString('hex')}`)
    if (stream === undefined || !refusal.sender.equals(this.incarnation)) return
    for (const message of stream.messages.splice(0)) {
      message.end(message.toAnother ? 'unknown' : { refused: REFUSALS[refusal.reason] ?? `reason ${refusal.reason}` })
    }
  }

  private requeue(stream: SendStream): void {
    for (const message of stream.messages) if (message.state !== 'held') message.state = 'queued'
    stream.probing = true
    stream.timerFrom = clock()
  }

  private hold(stream: SendStream, retryAfterMs: number): void {
    stream.refusals++
    stream.probing = true
    const backoff = Math.min(MOST_TIMEOUT, 200 * 2 ** Math.min(stream.refusals, 6))
    stream.waitUntil = clock() + (retryAfterMs > 0 ? retryAfterMs : backoff)
  }

  private pump(stream: SendStream): void {
    if (!this.carrier.isConnected() || clock() < stream.waitUntil) return
    let bytesOut = 0
    let out = 0
    for (const message of stream.messages) {
      if (message.state === 'queued') continue
      bytesOut += message.payload.length
      out++
    }
    for (const message of stream.messages) {
      if (message.state !== 'queued') continue
      if (stream.probing && stream.messages.some(other => other.state === 'carried' || other.state === 'sent')) return
      if (out >= WINDOW_MESSAGES || (out > 0 && bytesOut + message.payload.length > WINDOW_BYTES)) return
      bytesOut += message.payload.length
      out++
      this.transmit(stream, message)
    }
  }

  private transmit(stream: SendStream, message: Outgoing): void {
    message.state = 'carried'
    const build = (): Buffer | null => {
      const left = Math.floor(message.deadline - clock())
      if (left < 1 || !stream.messages.includes(message)) return null
      return encode([this.incarnation, message.sequence, stream.base, left, message.content, message.payload])
    }
    const sent = (): void => {
      message.state = 'sent'
      message.transmissions++
      message.mayHaveArrived++
      message.sentAt = stream.timerFrom = clock()
      message.sentOrder = ++this.orders
    }
    const settle = (outcome: Outcome): void => {
      if (outcome.kind !== 'refused') return
      if (message.state === 'sent' || message.state === 'held') message.mayHaveArrived--
      if (!stream.messages.includes(message) || message.state === 'held') return
      if (mayRetry(outcome.code)) {
        message.state = 'queued'
        this.hold(stream, outcome.retryAfterMs)
      } else {
        this.finish(stream, message, { refused: `code ${outcome.code}` })
      }
    }
    this.carrier.carry(stream.peer, stream.cls, 1, message.payload.length + 64, build, sent, settle)
  }

  private mark(stream: SendStream): void {
    const payload = encode([2, null, this.incarnation, [[stream.cls, stream.base, stream.next]]])
    this.carrier.carry(stream.peer, CONTROL_CLASS, 2, payload.length, () => payload, () => {}, () => {})
  }

  private finish(stream: SendStream, message: Outgoing, outcome: ReliableOutcome): void {
    stream.messages = stream.messages.filter(other => other !== message)
    message.end(outcome)
  }

  private rest(): void {
    if (this.ticker !== null) clearInterval(this.ticker)
    this.ticker = null
  }

  private tick(): void {
    if (this.pending === 0) return this.rest()
    const now = clock()
    for (const [name, stream] of this.streams) {
      for (const message of [...stream.messages]) {
        if (message.deadline <= now) this.finish(stream, message, message.mayHaveArrived > 0 ? 'unknown' : 'expired')
      }
      if (stream.messages.length === 0) {
        if (this.streams.size > STREAMS && stream.next === 1n) this.streams.delete(name)
        continue
      }
      const waitsForAck = stream.messages.some(message => message.state === 'sent' || message.state === 'held')
      if (this.carrier.isConnected() && waitsForAck && now - stream.timerFrom >= stream.timeout) {
        stream.timerFrom = now
        stream.timeout = Math.min(MOST_TIMEOUT, stream.timeout * 2)
        if (stream.messages.some(message => message.state === 'sent')) {
          for (const message of stream.messages) if (message.state === 'sent') message.state = 'queued'
          stream.probing = true
        } else if (stream.messages.every(message => message.state === 'held')) {
          this.mark(stream)
        }
      }
      this.pump(stream)
    }
  }
}

// ---- receiving ---------------------------------------------------------------------------------------------------

interface Arrived { readonly content: number, readonly payload: Buffer, expiresAt: number }

class ReceiveStream {
  /** Everything below was handed over or is gone. */
  next: bigint
  /** The next sequence to go to the queue of the application. */
  cursor: bigint
  forgotten = false
  readonly taken = new Set<bigint>()
  readonly buffer = new Map<bigint, Arrived>()
  longestExpires = 0
  lastHeard = clock()
  ackSoon = false
  untakenTimer: NodeJS.Timeout | null = null

  constructor(readonly sender: Buffer, readonly incarnation: Buffer, readonly cls: number, public base: bigint) {
    this.next = this.cursor = base
  }

  advance(): void {
    while (this.taken.delete(this.next)) this.next++
  }
}

interface Sender { incarnation: Buffer, streams: Map<number, ReceiveStream>, refusedAt: number }

const toRanges = (numbers: Iterable<bigint>): Range[] => {
  const list: Range[] = []
  for (const n of [...numbers].sort((a, b) => (a < b ? -1 : 1))) {
    const last = list.at(-1)
    if (last !== undefined && last[1] + 1n === n) last[1] = n
    else list.push([n, n])
  }
  return list.slice(0, RANGES)
}

export class ReliableReceiver {
  readonly incarnation = newIncarnation()
  private readonly senders = new Map<string, Sender>()
  private streamCount = 0
  private bufferedBytes = 0
  private readonly ticker = setInterval(() => this.forgetOld(), 10_000)

  constructor(private readonly carrier: Carrier) { this.ticker.unref() }

  stop(): void { clearInterval(this.ticker) }

  onSegment(peer: Buffer, cls: number, segment: Segment): void {
    const stream = this.stream(peer, cls, segment.incarnation, segment.base, true)
    if (stream === null) return
    stream.lastHeard = clock()
    stream.longestExpires = Math.max(stream.longestExpires, segment.expiresMs)
    this.raiseBase(stream, segment.base)
    const { sequence } = segment
    const waiting = stream.buffer.get(sequence)
    if (waiting !== undefined) {
      waiting.expiresAt = Math.max(waiting.expiresAt, clock() + segment.expiresMs)
      return this.ack(stream)
    }
    if (sequence < stream.cursor) return this.ack(stream)
    if (sequence - stream.next >= AHEAD || (sequence !== stream.next && this.bufferedBytes + segment.payload.length > BUFFER_BYTES)) return
    stream.buffer.set(sequence, { content: segment.content, payload: segment.payload, expiresAt: clock() + segment.expiresMs })
    this.bufferedBytes += segment.payload.length
    if (sequence > stream.cursor) this.ack(stream)
    this.handOver(stream)
    stream.untakenTimer ??= setTimeout(() => {
      stream.untakenTimer = null
      if (stream.buffer.size > 0) this.ack(stream)
    }, ACK_UNTAKEN_MS)
  }

  onMark(peer: Buffer, mark: Control & { kind: 'mark' }): void {
    if (mark.room !== null) return
    for (const { cls, base } of mark.streams) {
      const stream = this.stream(peer, cls, mark.incarnation, base, false)
      if (stream === null) continue
      stream.lastHeard = clock()
      this.raiseBase(stream, base)
      this.handOver(stream)
      this.ack(stream)
    }
  }

  private stream(peer: Buffer, cls: number, incarnation: Buffer, base: bigint, isSegment: boolean): ReceiveStream | null {
    const name = peer.toString('hex')
    let sender = this.senders.get(name)
    if (sender === undefined) {
      if (this.streamCount >= STREAMS) return this.refuse(peer, cls, incarnation, 2)
      this.senders.set(name, sender = { incarnation, streams: new Map(), refusedAt: -Infinity })
    }
    const order = Buffer.compare(incarnation, sender.incarnation)
    if (order < 0) {
      if (isSegment && clock() - sender.refusedAt >= REFUSAL_EVERY_MS) {
        sender.refusedAt = clock()
        this.refuse(peer, cls, incarnation, 1)
      }
      return null
    }
    if (order > 0) {
      for (const old of sender.streams.values()) this.forget(sender, old)
      sender.incarnation = incarnation
    }
    let stream = sender.streams.get(cls)
    if (stream === undefined) {
      if (this.streamCount >= STREAMS) return this.refuse(peer, cls, incarnation, 2)
      this.streamCount++
      sender.streams.set(cls, stream = new ReceiveStream(peer, incarnation, cls, base))
    }
    return stream
  }

  private refuse(peer: Buffer, cls: number, incarnation: Buffer, reason: number): null {
    const payload = encode([1, incarnation, cls, reason])
    this.carrier.carry(peer, CONTROL_CLASS, 2, payload.length, () => payload, () => {}, () => {})
    return null
  }

  private raiseBase(stream: ReceiveStream, base: bigint): void {
    if (base <= stream.base) return
    stream.base = base
    for (const sequence of [...stream.buffer.keys()]) if (sequence < base) this.unbuffer(stream, sequence)
    for (const sequence of [...stream.taken]) if (sequence < base) stream.taken.delete(sequence)
    if (base > stream.next) stream.next = base
    if (base > stream.cursor) stream.cursor = base
    stream.advance()
  }

  private unbuffer(stream: ReceiveStream, sequence: bigint): Arrived | undefined {
    const arrived = stream.buffer.get(sequence)
    if (arrived !== undefined) {
      stream.buffer.delete(sequence)
      this.bufferedBytes -= arrived.payload.length
    }
    return arrived
  }

  private handOver(stream: ReceiveStream): void {
    for (let arrived = stream.buffer.get(stream.cursor); arrived !== undefined; arrived = stream.buffer.get(stream.cursor)) {
      const sequence = stream.cursor++
      const take = (): boolean => {
        const waiting = this.unbuffer(stream, sequence)
        // Below a greater base, of a forgotten stream, or too late.
        if (waiting === undefined || stream.forgotten || waiting.expiresAt < clock()) return false
        stream.taken.add(sequence)
        stream.advance()
        this.ackSoon(stream)
        return true
      }
      this.carrier.handOver(stream.sender, stream.cls, arrived.content, arrived.payload, take)
    }
  }

  /** One ack for all that was taken in a turn of the loop. */
  private ackSoon(stream: ReceiveStream): void {
    if (stream.ackSoon) return
    stream.ackSoon = true
    setImmediate(() => {
      stream.ackSoon = false
      this.ack(stream)
    })
  }

  private ack(stream: ReceiveStream): void {
    if (stream.forgotten) return
    const build = (): Buffer => encode([
      0, this.incarnation, stream.incarnation, stream.cls, stream.next, toRanges(stream.taken), toRanges(stream.buffer.keys()),
    ])
    this.carrier.carry(stream.sender, CONTROL_CLASS, 2, 128, build, () => {}, () => {})
  }

  private forget(sender: Sender, stream: ReceiveStream): void {
    stream.forgotten = true
    for (const sequence of [...stream.buffer.keys()]) this.unbuffer(stream, sequence)
    if (stream.untakenTimer !== null) clearTimeout(stream.untakenTimer)
    sender.streams.delete(stream.cls)
    this.streamCount--
  }

  private forgetOld(): void {
    const now = clock()
    for (const [name, sender] of this.senders) {
      for (const stream of sender.streams.values()) {
        if (now - stream.lastHeard > 2 * Math.max(stream.longestExpires, 60_000) && stream.buffer.size === 0) this.forget(sender, stream)
      }
      if (sender.streams.size === 0) this.senders.delete(name)
    }
  }
}
