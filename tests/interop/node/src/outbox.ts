// What the application wants to send, and the order in which it leaves: classes, contracts of the relay, PAUSE.
// It outlives connections: what has not left waits for the next one.
import { Group, judgeAll, Scheduler } from './ats.js'
import { Cutter } from './frames.js'
import { type ContractEntry, type Message, serialize } from './messages.js'

export interface Item {
  readonly cls: number
  readonly content: number
  /** The destination as a key of maps: a room's name behind "r:", or a peer's key in hexadecimal behind "p:". */
  readonly destination: string
  readonly size: number
  /** Whether it heeds PAUSE. */
  readonly patient: boolean
  /** The message as it leaves; null if it need not leave any more. */
  readonly build: () => Message | null
  readonly sent: () => void
  readonly settle: (outcome: Outcome) => void
  /** A REJECT receiver_gone after the message was settled as accepted. */
  readonly late?: (code: number, retryAfterMs: number) => void
}

export type Outcome =
  | { readonly kind: 'accepted' }
  | { readonly kind: 'refused', readonly code: number, readonly retryAfterMs: number }
  | { readonly kind: 'unknown' }

interface Queued extends Item {
  readonly order: number
  array?: Buffer
  eligibleAt?: bigint
}

export interface Piece { readonly bytes: Buffer, readonly completes: Item | null }

const nanoseconds = (): bigint => process.hrtime.bigint()
const CONNECTION = ''

export class Outbox {
  private readonly queues: Queued[][] = Array.from({ length: 7 }, () => [])
  private readonly bytes: number[] = new Array<number>(7).fill(0)
  private readonly cutters: Array<{ cutter: Cutter, item: Queued } | undefined> = new Array(7).fill(undefined)
  private readonly contracts = new Map<string, Map<number, Scheduler>>()
  private readonly pauses = new Map<string, number>()
  private waiters: Array<{ cls: number, below: number, resolve: () => void }> = []
  /** When something that waits now can leave, in ms of performance.now(). */
  wakeAt = Infinity

  constructor(private readonly payloadBytes: () => number) {}

  queuedBytes(cls: number): number { return this.bytes[cls] }

  get empty(): boolean { return this.queues.every((queue, cls) => queue.length === 0 && this.cutters[cls] === undefined) }

  add(item: Item, order: number): void {
    this.queues[item.cls].push({ ...item, order })
    this.bytes[item.cls] += item.size
  }

  /** Resolves when the class holds less than `below` bytes. */
  room(cls: number, below: number): Promise<void> {
    if (this.bytes[cls] < below) return Promise.resolve()
    return new Promise(resolve => this.waiters.push({ cls, below, resolve }))
  }

  /** Is anything left that was added before `order`? */
  holdsBefore(order: number): boolean {
    return this.queues.some((queue, cls) => (queue.length > 0 && queue[0].order < order) || (this.cutters[cls]?.item.order ?? Infinity) < order)
  }

  // ---- contracts and pauses --------------------------------------------------------------------------------------

  setContracts(room: string | null, entries: readonly ContractEntry[]): void {
    const scope = room === null ? CONNECTION : `r:${room}`
    const before = this.contracts.get(scope)
    const after = new Map<number, Scheduler>()
    const now = nanoseconds()
    for (const [cls, cir, cbs] of entries) {
      let scheduler = before?.get(cls)
      if (scheduler === undefined) scheduler = new Scheduler(BigInt(cir), BigInt(cbs), new Group(), 0n, now)
      else if (!scheduler.same(BigInt(cir), BigInt(cbs))) scheduler.setRate(now, BigInt(cir), BigInt(cbs))
      after.set(cls, scheduler)
    }
    if (after.size === 0) this.contracts.delete(scope)
    else this.contracts.set(scope, after)
  }

  pause(destination: string, cls: number, until: number): void { this.pauses.set(`${cls} ${destination}`, until) }
  resume(destination: string, cls: number): void { this.pauses.delete(`${cls} ${destination}`) }

  private pausedUntil(item: Item, now: number): number {
    if (!item.patient || item.content === 2 || item.content === 5) return 0
    const name = `${item.cls} ${item.destination}`
    const until = this.pauses.get(name) ?? 0
    if (until <= now) this.pauses.delete(name)
    return until
  }

  /** The relay and its contracts are gone; a message that was cut in the middle begins anew on the next connection. */
  disconnected(): void {
    this.contracts.clear()
    this.pauses.clear()
    for (let cls = 0; cls < 7; cls++) {
      const open = this.cutters[cls]
      if (open !== undefined) {
        this.queues[cls].unshift(open.item)
        this.bytes[cls] += open.item.size
        this.cutters[cls] = undefined
      }
      for (const item of this.queues[cls]) item.array = item.eligibleAt = undefined
    }
  }

  /** Takes what fits out; used for reliable segments, which are made anew on a new connection. */
  remove(fits: (item: Item) => boolean): void {
    for (let cls = 0; cls < 7; cls++) {
      this.queues[cls] = this.queues[cls].filter(item => {
        if (!fits(item)) return true
        this.bytes[cls] -= item.size
        return false
      })
      this.wakeWaiters(cls)
    }
  }

  settleAll(outcome: Outcome): void {
    for (let cls = 0; cls < 7; cls++) {
      const open = this.cutters[cls]
      this.cutters[cls] = undefined
      const items = this.queues[cls].splice(0)
      this.bytes[cls] = 0
      if (open !== undefined) items.unshift(open.item)
      for (const item of items) item.settle(outcome)
      this.wakeWaiters(cls)
    }
  }

  // ---- choosing --------------------------------------------------------------------------------------------------

  /** The next piece to leave: strict priority between classes, first in first out for a destination. */
  next(): Piece | null {
    this.wakeAt = Infinity
    for (let cls = 6; cls >= 0; cls--) {
      const open = this.cutters[cls] ?? this.choose(cls)
      if (open === null) continue
      const { bytes, last } = open.cutter.next()
      this.cutters[cls] = last ? undefined : open
      return { bytes, completes: last ? open.item : null }
    }
    return null
  }

  private choose(cls: number): { cutter: Cutter, item: Queued } | null {
    const queue = this.queues[cls]
    if (queue.length === 0) return null
    const now = performance.now()
    const blocked = new Set<string>()
    for (let i = 0; i < queue.length;) {
      const item = queue[i]
      const schedulers = this.schedulers(item)
      const lane = this.contracts.get(item.destination)?.has(cls) ? item.destination : CONNECTION
      if (blocked.has(lane) || blocked.has(item.destination)) { i++; continue }
      const until = item.array === undefined ? this.pausedUntil(item, now) : 0
      if (until > now) {
        this.wakeAt = Math.min(this.wakeAt, until)
        blocked.add(item.destination)
        i++
        continue
      }
      const array = this.build(item)
      if (array === null) { this.take(queue, i); continue }
      if (schedulers.length > 0 && item.eligibleAt === undefined) {
        const verdict = judgeAll(schedulers, nanoseconds(), BigInt(array.length + 4))
        if (verdict.kind !== 'eligible') {
          this.take(queue, i)
          item.settle({ kind: 'refused', code: 34, retryAfterMs: 0 })
          continue
        }
        verdict.commit()
        item.eligibleAt = verdict.at
      }
      const wait = schedulers.length > 0 ? Number(item.eligibleAt! - nanoseconds()) / 1e6 : 0
      if (wait > 0) {
        this.wakeAt = Math.min(this.wakeAt, now + wait)
        blocked.add(lane)
        blocked.add(item.destination)
        i++
        continue
      }
      this.take(queue, i)
      return { cutter: new Cutter(array, cls), item }
    }
    return null
  }

  private build(item: Queued): Buffer | null {
    if (item.array !== undefined) return item.array
    const message = item.build()
    if (message === null) return null
    if (((message as unknown[]).at(-1) as Uint8Array).length > this.payloadBytes()) {
      item.settle({ kind: 'refused', code: 34, retryAfterMs: 0 })
      return null
    }
    item.array = serialize(message)
    return item.array
  }

  private schedulers(item: Item): Scheduler[] {
    const found: Scheduler[] = []
    for (const scope of [CONNECTION, item.destination]) {
      const scheduler = this.contracts.get(scope)?.get(item.cls)
      if (scheduler !== undefined) found.push(scheduler)
    }
    return found
  }

  private take(queue: Queued[], index: number): void {
    const [item] = queue.splice(index, 1)
    this.bytes[item.cls] -= item.size
    this.wakeWaiters(item.cls)
  }

  private wakeWaiters(cls: number): void {
    if (this.waiters.length === 0) return
    this.waiters = this.waiters.filter(waiter => {
      if (waiter.cls !== cls || this.bytes[cls] >= waiter.below) return true
      waiter.resolve()
      return false
    })
  }
}
