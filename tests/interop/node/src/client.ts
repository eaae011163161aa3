// A node: keeps a connection to a relay, joins its rooms again, sends and receives.
import { EventEmitter } from 'node:events'
import { randomBytes } from 'node:crypto'
import { Connection, type ConnectionHandler, type End, type Limits, nextOrder } from './connection.js'
import { Identity } from './crypto.js'
import { CODES, codeName, mayRetry } from './errors.js'
import { FIRST_FRAME_LIMIT } from './frames.js'
import { Inbox } from './inbox.js'
import * as m from './messages.js'
import { type Item, type Outcome, Outbox } from './outbox.js'
import { type Carrier, MAX_EXPIRES_MS, parseControl, parseSegment, type ReliableOutcome, ReliableReceiver, ReliableSender } from './reliable.js'

export const BULK = 0
export const DATA = 1
export const INTERACTIVE = 4
export const URGENT = 5

export interface Received {
  readonly mode: 'broadcast' | 'unicast' | 'anycast'
  readonly sender: Buffer
  readonly room: string | null
  readonly cls: number
  readonly payload: Buffer
  readonly reliable: boolean
}

export interface GapReport {
  readonly room: string | null
  readonly sender: Buffer | null
  readonly cls: number
  readonly count: number
  readonly code: number
  /** true: this client had no room; false: the relay lost them. */
  readonly local: boolean
}

export interface RoomState { readonly room: string, readonly version: m.Uint, readonly members: m.Uint, readonly messages: m.Uint }
export interface MemberInfo { readonly key: Buffer, readonly joined: m.Uint, readonly attributes: m.Attributes }

export interface Events {
  connected: [relay: string, epoch: Buffer, limits: Limits]
  disconnected: [end: End, retryInMs: number | null]
  message: [message: Received]
  gap: [gap: GapReport]
  joined: [room: RoomState]
  left: [room: string, code: number]
  presence: [room: string, left: Buffer[], joined: MemberInfo[]]
  rejected: [what: { destination: string, cls: number, code: number, retryAfterMs: number, late: boolean }]
  paused: [destination: string, cls: number, forMs: number]
  goaway: [message: m.Goaway]
  closed: [end: End | null]
  fault: [error: unknown]
}

export interface ClientOptions {
  readonly relays: string | readonly string[]
  readonly seed?: Uint8Array
  readonly attributes?: m.Attributes
  /** Takes messages one by one in each class; the class is paused while its promises are slow. Without it: event `message`. */
  readonly onMessage?: (message: Received) => void | Promise<void>
  readonly onRequest?: (request: Received) => Uint8Array | Promise<Uint8Array>
  readonly reconnect?: boolean
}

export interface SendOptions {
  readonly cls?: number
  /** Waits while the relay says PAUSE for this destination. */
  readonly patient?: boolean
}

export class RefusedError extends Error {
  constructor(readonly code: number, readonly retryAfterMs = 0) { super(codeName(code)) }
}

interface RoomWish { flags: number, capability: Uint8Array | null }
interface Answer { readonly kind: 'join' | 'leave', readonly resolve: (state: RoomState | null) => void, readonly reject: (error: Error) => void }
interface Waiting<T> { readonly resolve: (value: T) => void, readonly reject: (error: Error) => void }
interface View { version: m.Uint, readonly members: Map<string, MemberInfo>, after: m.Uint | null }

// One incarnation and one count of connections for all that this process does.
const INCARNATION: [number, Buffer] = [Date.now(), randomBytes(8)]
let connections = 0

const OUTBOX_HIGH = 1_048_576
const REJOIN_MS = 2_000
const MODES = ['broadcast', 'unicast', 'anycast'] as const
const toKey = (peer: Uint8Array): string => `p:${Buffer.from(peer).toString('hex')}`

export class Client extends EventEmitter<Events> {
  readonly identity: Identity
  limits: Limits | null = null
  epoch: Buffer | null = null
  /** DELIVERs whose content this client does not know or does not take. */
  ignored = 0

  private readonly relays: string[]
  private connection: Connection | null = null
  private open = false
  private stopped = false
  private relayIndex = 0
  private attempt = 0
  private connectedAt = 0
  private lostAt = performance.now()
  private retryTimer: NodeJS.Timeout | null = null
  private rejoinTimer: NodeJS.Timeout | null = null
  private firstConnect: Waiting<void> | null = null

  private readonly outbox = new Outbox(() => this.limits?.payload_bytes ?? 4_096)
  private readonly inbox: Inbox
  private readonly unsettled = new Set<Promise<Outcome>>()
  private readonly wishes = new Map<string, RoomWish>()
  private readonly answers = new Map<string, Answer[]>()
  private readonly pages = new Map<string, Array<Waiting<m.MembersPage>>>()
  private readonly presents = new Map<string, Array<Waiting<void>>>()
  private stats: Array<Waiting<Map<string, m.Uint | m.Uint[]>>> = []
  private readonly views = new Map<string, View>()
  private readonly requests = new Map<string, Waiting<Buffer> & { readonly peer: string | null }>()
  private readonly reliableSender: ReliableSender
  private readonly reliableReceiver: ReliableReceiver

  constructor(private readonly options: ClientOptions) {
    super()
    this.identity = new Identity(options.seed)
    this.relays = typeof options.relays === 'string' ? [options.relays] : [...options.relays]
    for (const relay of this.relays) m.parseAddress(relay)
    this.inbox = new Inbox(
      (cls, paused) => this.open && this.connection!.queueControl(paused ? [18, null, cls, 0] : [19, null, cls]),
      error => this.fault(error),
    )
    const carrier: Carrier = {
      isConnected: () => this.open,
      carry: (peer, cls, content, size, build, sent, settle) => {
        const late = (code: number, retryAfterMs: number): void => settle({ kind: 'refused', code, retryAfterMs })
        const make = (): m.Message | null => {
          const payload = build()
          return payload === null ? null : [7, peer, cls, content, payload]
        }
        this.enqueue({ cls, content, destination: toKey(peer), size, patient: true, build: make, sent, settle, late })
      },
      handOver: (sender, cls, content, payload, take) => {
        this.inbox.add(cls, {
          bytes: payload.length + 64,
          dropped: null,
          run: () => take() ? this.deliver({ mode: 'unicast', sender, room: null, cls, payload, reliable: true }, content) : undefined,
        })
      },
    }
    this.reliableSender = new ReliableSender(carrier)
    this.reliableReceiver = new ReliableReceiver(carrier)
  }

  get key(): string { return this.identity.hex }
  get isConnected(): boolean { return this.open }

  // ---- connecting ------------------------------------------------------------------------------------------------

  /** Resolves with the first WELCOME; later connections come by themselves. */
  connect(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.firstConnect = { resolve, reject }
      this.dial()
    })
  }

  private dial(): void {
    this.retryTimer = null
    const relay = this.relays[this.relayIndex % this.relays.length]
    const attributes: m.Attributes = new Map(this.options.attributes)
    if (attributes.size < 16) attributes.set('ac:reliable', 1)
    const intents: m.RoomIntent[] = []
    let size = 2_048
    for (const [room, { flags, capability }] of this.wishes) {
      size += Buffer.byteLength(room) + (capability?.length ?? 0) + 16
      if (intents.length === 256 || size > FIRST_FRAME_LIMIT) break
      intents.push([room, flags, capability])
    }
    const hello: m.Hello = [0, 1, INCARNATION, ++connections, attributes, intents]
    const handler: ConnectionHandler = {
      welcome: (message, limits) => this.welcome(relay, message, limits, intents),
      message: message => this.take(message),
      ended: end => this.ended(end),
    }
    this.connection = new Connection(m.parseAddress(relay), this.identity, hello, this.outbox, handler)
  }

  private welcome(relay: string, message: m.Welcome, limits: Limits, intents: m.RoomIntent[]): void {
    this.open = true
    this.limits = limits
    this.connectedAt = performance.now()
    this.epoch = Buffer.from(message[2])
    const inHello = new Set(intents.map(([room]) => room))
    for (const room of this.wishes.keys()) {
      // A join that waits for its answer is answered on this connection.
      const waiting = this.answers.get(room)?.filter(answer => answer.kind === 'join') ?? []
      this.answers.set(room, [])
      if (inHello.has(room)) this.expect(room, 'join', waiting)
      else this.sendJoin(room, waiting)
    }
    for (const cls of this.inbox.pausedClasses()) this.connection!.queueControl([18, null, cls, 0])
    this.emit('connected', relay, this.epoch, limits)
    this.firstConnect?.resolve()
    this.firstConnect = null
    this.reliableSender.connected()
  }

  private ended(end: End): void {
    const wasOpen = this.open
    this.open = false
    this.connection = null
    this.views.clear()
    const lost = new Error('the connection ended')
    for (const list of [...this.pages.values(), ...this.presents.values(), this.stats]) for (const waiting of list) waiting.reject(lost)
    this.pages.clear()
    this.presents.clear()
    this.stats = []
    for (const [room, answers] of this.answers) {
      for (const answer of answers) if (answer.kind === 'leave') answer.resolve(null)
      this.answers.set(room, answers.filter(answer => answer.kind === 'join'))
    }
    this.outbox.remove(item => item.content === 1 || item.content === 2)
    this.reliableSender.disconnected()
    if (wasOpen) this.lostAt = performance.now()
    if (wasOpen && this.lostAt - this.connectedAt >= 60_000) this.attempt = 0
    const delay = this.retryDelay(end)
    this.emit('disconnected', end, delay)
    if (delay === null) return this.finish(end)
    this.retryTimer = setTimeout(() => this.dial(), delay)
  }

  /** null: not again. */
  private retryDelay(end: End): number | null {
    if (this.stopped || this.options.reconnect === false || end.wrongKey) return null
    if (end.code !== null && !mayRetry(end.code)) return null
    this.relayIndex++
    this.attempt++
    const cap = performance.now() - this.lostAt < 60_000 ? 2_500 : 30_000
    let delay = Math.random() * Math.min(cap, 100 * 2 ** this.attempt)
    if (end.goaway !== null && end.by === 'relay' && this.relays.length === 1) {
      delay = Math.max(delay, Math.random() * Math.min(Number(end.goaway[3]), 600_000))
    }
    return delay
  }

  private finish(end: End | null): void {
    this.stopped = true
    this.reliableSender.stop()
    this.reliableReceiver.stop()
    this.outbox.settleAll({ kind: 'unknown' })
    if (this.rejoinTimer !== null) clearTimeout(this.rejoinTimer)
    const error = new Error(end === null ? 'closed' : `the connection ended: ${end.detail}`)
    for (const answers of this.answers.values()) for (const answer of answers) answer.reject(error)
    for (const waiting of this.requests.values()) waiting.reject(error)
    this.answers.clear()
    this.requests.clear()
    this.firstConnect?.reject(error)
    this.firstConnect = null
    this.emit('closed', end)
  }

  /** Sends what is queued, for `timeoutMs` at most, and ends the session. */
  async close(timeoutMs = 3_000): Promise<void> {
    if (this.stopped) return
    if (this.open) await Promise.race([this.flush(), new Promise(resolve => setTimeout(resolve, timeoutMs).unref())])
    if (this.stopped) return
    this.stopped = true
    if (this.retryTimer !== null) {
      clearTimeout(this.retryTimer)
      return this.finish(null)
    }
    const closed = new Promise<void>(resolve => this.once('closed', () => resolve()))
    this.connection?.close()
    return closed
  }

  /** Cuts the connection without a word, as a broken network does. For tests. */
  breakConnection(): void { this.connection?.break('cut') }

  // ---- messages of the relay -------------------------------------------------------------------------------------

  private take(message: m.RelayMessage): void {
    switch (message[0]) {
      case 3: return this.takeJoined(message)
      case 5: return this.takeLeft(message)
      case 9: return this.takeDeliver(message)
      case 11: return this.takePage(message)
      case 13: return this.takePresence(message)
      case 15: return this.takeContract(message)
      case 17: return this.takeGap(message)
      case 18: {
        const destination = typeof message[1] === 'string' ? `r:${message[1]}` : toKey(message[1]!)
        const forMs = Number(message[3])
        this.outbox.pause(destination, message[2], performance.now() + forMs)
        this.emit('paused', destination, message[2], forMs)
        return
      }
      case 19:
        this.outbox.resume(typeof message[1] === 'string' ? `r:${message[1]}` : toKey(message[1]!), message[2])
        this.connection?.schedule()
        return
      case 22:
        this.emit('goaway', message)
        return
      case 25:
        for (const waiting of this.stats.splice(0)) waiting.resolve(message[1])
        return
    }
  }

  private takeDeliver([, mode, sender, room, cls, content, payload]: m.Deliver): void {
    const unicast = mode === 1
    if (content === 0 || (content === 4 && mode !== 0)) {
      const received: Received = { mode: MODES[mode], sender, room, cls, payload, reliable: false }
      const dropped = (): void => this.inbox.mark(cls, () => {
        this.emit('gap', { room, sender, cls, count: 1, code: CODES.receiver_congested, local: true })
      })
      this.inbox.add(cls, { bytes: payload.length + 64, run: () => this.deliver(received, content), dropped })
    } else if (content === 5 && unicast) {
      this.takeResponse(sender, payload)
    } else if (content === 1 && unicast) {
      const segment = parseSegment(payload)
      if (segment !== null) this.reliableReceiver.onSegment(sender, cls, segment)
    } else if (content === 2 && unicast) {
      const control = parseControl(payload)
      if (control?.kind === 'ack') this.reliableSender.onAck(sender, control)
      else if (control?.kind === 'refusal') this.reliableSender.onRefusal(sender, control)
      else if (control?.kind === 'mark') this.reliableReceiver.onMark(sender, control)
    } else {
      this.ignored++
    }
  }

  private deliver(received: Received, content: number): void | Promise<void> {
    if (content === 4) return this.answer(received)
    if (content === 5) return this.takeResponse(received.sender, received.payload)
    if (content !== 0) {
      this.ignored++
      return
    }
    if (this.options.onMessage !== undefined) return this.options.onMessage(received)
    this.emit('message', received)
  }

  private takeGap([, room, sender, cls, count, , code]: m.Gap): void {
    this.inbox.mark(cls, () => this.emit('gap', { room, sender, cls, count: Number(count), code: Number(code), local: false }))
  }

  private takeContract([, room, code, contracts]: m.Contract): void {
    if (code === 0) {
      this.outbox.setContracts(room, contracts)
      this.connection?.schedule()
    }
    if (room === null) return
    const waiting = this.presents.get(room)?.shift()
    if (code === 0) waiting?.resolve()
    else waiting?.reject(new RefusedError(Number(code)))
  }

  // ---- rooms -----------------------------------------------------------------------------------------------------

  join(room: string, options: { watch?: boolean, observe?: boolean, capability?: Uint8Array } = {}): Promise<RoomState> {
    if (!m.validRoom(room)) return Promise.reject(new RefusedError(CODES.bad_room))
    const flags = (options.watch ? m.WATCH : 0) | (options.observe ? m.OBSERVE : 0)
    this.wishes.set(room, { flags, capability: options.capability ?? null })
    return new Promise((resolve, reject) => {
      const waiting: Answer = { kind: 'join', resolve: state => resolve(state!), reject }
      if (this.open) this.sendJoin(room, [waiting])
      else this.answers.set(room, [...this.answers.get(room) ?? [], waiting])
    })
  }

  async leave(room: string): Promise<void> {
    this.wishes.delete(room)
    this.views.delete(room)
    if (!this.open) return
    await new Promise((resolve, reject) => {
      this.connection!.queueControl([4, room], { barrier: true })
      this.expect(room, 'leave', [{ kind: 'leave', resolve, reject }])
    })
  }

  private sendJoin(room: string, waiting: readonly Answer[]): void {
    const wish = this.wishes.get(room)!
    this.connection!.queueControl([2, room, wish.flags, wish.capability], { ordered: true })
    this.expect(room, 'join', waiting)
  }

  /** One answer of the relay, for all that wait for it. */
  private expect(room: string, kind: Answer['kind'], waiting: readonly Answer[]): void {
    const all: Answer = {
      kind,
      resolve: state => { for (const one of waiting) one.resolve(state) },
      reject: error => { for (const one of waiting) one.reject(error) },
    }
    this.answers.set(room, [...this.answers.get(room) ?? [], all])
  }

  private nextAnswer(room: string, kind: Answer['kind']): Answer | undefined {
    const answers = this.answers.get(room) ?? []
    const index = answers.findIndex(answer => answer.kind === kind)
    return index < 0 ? undefined : answers.splice(index, 1)[0]
  }

  private takeJoined([, room, version, members, messages, contracts]: m.Joined): void {
    this.outbox.setContracts(room, contracts)
    const state = { room, version, members, messages }
    const wish = this.wishes.get(room)
    if (wish !== undefined && (wish.flags & m.WATCH) !== 0) {
      this.views.set(room, { version, members: new Map(), after: null })
      void this.fetchView(room)
    }
    this.nextAnswer(room, 'join')?.resolve(state)
    this.emit('joined', state)
  }

  private takeLeft([, room, codeField]: m.Left): void {
    const code = Number(codeField)
    if (code === 0) {
      this.nextAnswer(room, 'leave')?.resolve(null)
    } else {
      const join = code === CODES.evicted ? undefined : this.nextAnswer(room, 'join')
      if (mayRetry(code) && this.wishes.has(room)) {
        this.rejoinTimer ??= setTimeout(() => {
          this.rejoinTimer = null
          if (this.open && this.wishes.has(room)) this.sendJoin(room, [])
        }, REJOIN_MS)
      } else {
        this.wishes.delete(room)
        this.views.delete(room)
      }
      join?.reject(new RefusedError(code))
    }
    this.emit('left', room, code)
  }

  private askPage(room: string, after: m.Uint): Promise<m.MembersPage> {
    if (!this.open) return Promise.reject(new Error('not connected'))
    return new Promise((resolve, reject) => {
      this.pages.set(room, [...this.pages.get(room) ?? [], { resolve, reject }])
      this.connection!.queueControl([10, room, after], { ordered: true })
    })
  }

  private takePage(page: m.MembersPage): void {
    const view = this.views.get(page[1])
    if (view !== undefined && page[2] === 0) for (const member of page[4].map(info)) view.members.set(member.key.toString('hex'), member)
    this.pages.get(page[1])?.shift()?.resolve(page)
  }

  /** The member list in join order; the room must be joined, observing will do. */
  async members(room: string): Promise<MemberInfo[]> {
    const list: MemberInfo[] = []
    for (let after: m.Uint | null = 0; after !== null;) {
      const page: m.MembersPage = await this.askPage(room, after)
      if (page[2] !== 0) throw new RefusedError(Number(page[2]))
      list.push(...page[4].map(info))
      after = page[5]
    }
    return list
  }

  /** The members of a watched room as this client knows them now. */
  view(room: string): MemberInfo[] { return [...this.views.get(room)?.members.values() ?? []] }

  private async fetchView(room: string): Promise<void> {
    try {
      await this.members(room) // takePage adds them to the view
    } catch { /* the room or the connection is gone; the next JOINED begins anew */ }
  }

  private takePresence([, room, base, version, left, joined]: m.Presence): void {
    const view = this.views.get(room)
    const members = joined.map(info)
    if (view !== undefined) {
      if (base > view.version) {
        view.members.clear()
        void this.fetchView(room)
      }
      if (version > view.version) view.version = version
      for (const key of left) view.members.delete(key.toString('hex'))
      for (const member of members) view.members.set(member.key.toString('hex'), member)
    }
    this.emit('presence', room, left, members)
  }

  /** Shows a capability for an owned room. */
  present(room: string, capability: Uint8Array): Promise<void> {
    if (!this.open) return Promise.reject(new Error('not connected'))
    return new Promise((resolve, reject) => {
      this.presents.set(room, [...this.presents.get(room) ?? [], { resolve, reject }])
      this.connection!.queueControl([14, room, capability])
    })
  }

  statistics(): Promise<Map<string, m.Uint | m.Uint[]>> {
    if (!this.open) return Promise.reject(new Error('not connected'))
    return new Promise((resolve, reject) => {
      this.stats.push({ resolve, reject })
      this.connection!.queueControl([24])
    })
  }

  // ---- sending ---------------------------------------------------------------------------------------------------

  publish(room: string, payload: Uint8Array, options: SendOptions = {}): Promise<Outcome> {
    if (!m.validRoom(room)) return this.refusedHere(`r:${room}`, options.cls ?? DATA, CODES.bad_room)
    return this.message(cls => [6, room, cls, 0, payload], `r:${room}`, 0, payload.length, options)
  }

  anycast(room: string, payload: Uint8Array, options: SendOptions = {}): Promise<Outcome> {
    if (!m.validRoom(room)) return this.refusedHere(`r:${room}`, options.cls ?? DATA, CODES.bad_room)
    return this.message(cls => [8, room, cls, 0, payload], `r:${room}`, 0, payload.length, options)
  }

  send(peer: Uint8Array, payload: Uint8Array, options: SendOptions = {}): Promise<Outcome> {
    return this.message(cls => [7, peer, cls, 0, payload], toKey(peer), 0, payload.length, options)
  }

  /** Sends until the peer's application has taken the message, across broken connections. */
  sendReliable(peer: Uint8Array, payload: Uint8Array, options: { cls?: number, expiresMs?: number } = {}): Promise<ReliableOutcome> {
    if (this.stopped) return Promise.resolve('expired')
    return this.reliableSender.send(Buffer.from(peer), options.cls ?? DATA, 0, Buffer.from(payload), Math.min(options.expiresMs ?? 60_000, MAX_EXPIRES_MS))
  }

  /** Waits while a class holds more than a high-water mark. */
  writable(cls = DATA): Promise<void> { return this.outbox.room(cls, OUTBOX_HIGH) }

  /** Resolves when everything that was sent before has its outcome. */
  async flush(): Promise<void> {
    this.connection?.flush()
    await Promise.allSettled([...this.unsettled])
  }

  ping(): Promise<void> {
    return this.connection !== null && this.open ? this.connection.ping() : Promise.reject(new Error('not connected'))
  }

  private refusedHere(destination: string, cls: number, code: number): Promise<Outcome> {
    this.emit('rejected', { destination, cls, code, retryAfterMs: 0, late: false })
    return Promise.resolve({ kind: 'refused', code, retryAfterMs: 0 })
  }

  private message(build: (cls: number) => m.Message, destination: string, content: number, size: number, options: SendOptions): Promise<Outcome> {
    const cls = options.cls ?? DATA
    if (!Number.isInteger(cls) || cls < 0 || cls > 6) throw new RangeError('a class is 0 to 6')
    if (this.stopped) return Promise.resolve({ kind: 'unknown' })
    if (this.limits !== null && size > this.limits.payload_bytes) return this.refusedHere(destination, cls, CODES.payload_too_large)
    const promise = new Promise<Outcome>(resolve => {
      this.enqueue({
        cls, content, destination, size: size + 64, patient: options.patient ?? true, build: () => build(cls), sent: () => {},
        settle: outcome => {
          if (outcome.kind === 'refused') this.emit('rejected', { destination, cls, code: outcome.code, retryAfterMs: outcome.retryAfterMs, late: false })
          resolve(outcome)
        },
        late: (code, retryAfterMs) => this.emit('rejected', { destination, cls, code, retryAfterMs, late: true }),
      })
    })
    this.unsettled.add(promise)
    void promise.finally(() => this.unsettled.delete(promise))
    return promise
  }

  private enqueue(item: Item): void {
    this.outbox.add(item, nextOrder())
    this.connection?.schedule()
  }

  // ---- requests (requests.md) ------------------------------------------------------------------------------------

  request(peer: Uint8Array, body: Uint8Array, options: SendOptions & { timeoutMs?: number, reliable?: boolean } = {}): Promise<Buffer> {
    return this.ask(Buffer.from(peer), null, body, options)
  }

  /** A request to any one member of a room. */
  requestAny(room: string, body: Uint8Array, options: SendOptions & { timeoutMs?: number } = {}): Promise<Buffer> {
    return this.ask(null, room, body, options)
  }

  private ask(peer: Buffer | null, room: string | null, body: Uint8Array, options: SendOptions & { timeoutMs?: number, reliable?: boolean }): Promise<Buffer> {
    const id = randomBytes(8)
    const name = id.toString('hex')
    const payload = Buffer.concat([id, body])
    const { timeoutMs = 30_000, cls = DATA } = options
    return new Promise<Buffer>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error('no response in time')), timeoutMs)
      const done = <T>(act: (value: T) => void) => (value: T): void => {
        clearTimeout(timer)
        act(value)
      }
      this.requests.set(name, { resolve: done(resolve), reject: done(reject), peer: peer?.toString('hex') ?? null })
      if (options.reliable && peer !== null) {
        void this.reliableSender.send(peer, cls, 4, payload, timeoutMs).then(outcome => {
          if (typeof outcome === 'object') this.requests.get(name)?.reject(new Error(`refused: ${outcome.refused}`))
        })
        return
      }
      const build = (c: number): m.Message => peer !== null ? [7, peer, c, 4, payload] : [8, room!, c, 4, payload]
      void this.message(build, peer !== null ? toKey(peer) : `r:${room}`, 4, payload.length, options).then(outcome => {
        if (outcome.kind === 'refused') this.requests.get(name)?.reject(new RefusedError(outcome.code, outcome.retryAfterMs))
      })
    }).finally(() => this.requests.delete(name))
  }

  private async answer(request: Received): Promise<void> {
    if (request.payload.length < 8) return
    const id = request.payload.subarray(0, 8)
    let status = 0
    let body: Uint8Array
    try {
      if (this.options.onRequest === undefined) throw new Error('this node serves no requests')
      body = await this.options.onRequest({ ...request, payload: request.payload.subarray(8) })
    } catch (error) {
      status = 1
      body = Buffer.from((error as Error).message)
    }
    const payload = Buffer.concat([id, Buffer.of(status), body])
    if (request.reliable) void this.reliableSender.send(request.sender, request.cls, 5, payload, 60_000)
    else void this.message(cls => [7, request.sender, cls, 5, payload], toKey(request.sender), 5, payload.length, { cls: request.cls })
  }

  private takeResponse(sender: Buffer, payload: Buffer): void {
    if (payload.length < 9) return
    const waiting = this.requests.get(payload.subarray(0, 8).toString('hex'))
    if (waiting === undefined || (waiting.peer !== null && waiting.peer !== sender.toString('hex'))) return
    const body = payload.subarray(9)
    if (payload[8] === 0) waiting.resolve(body)
    else waiting.reject(new Error(body.toString('utf8')))
  }

  private fault(error: unknown): void {
    if (this.listenerCount('fault') > 0) this.emit('fault', error)
    else queueMicrotask(() => { throw error })
  }
}

function info([key, joined, attributes]: m.Member): MemberInfo {
  return { key: Buffer.from(key), joined, attributes }
}
