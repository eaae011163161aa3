// messages.md and messages.cddl: every message as a tuple, and the check of each field.
import { decode, encode, type Value } from './cbor.js'
import { protocolError, ProtocolFault } from './errors.js'

export type Uint = number | bigint
export type AttributeValue = string | Uint8Array | Uint | boolean | null
export type Attributes = Map<string, AttributeValue>
export type RoomIntent = [room: string, flags: number, capability: Uint8Array | null]
export type Member = [key: Buffer, joined: Uint, attributes: Attributes]
export type ContractEntry = [cls: number, cir: Uint, cbs: Uint, residenceMs: Uint]
export type Target = string | Buffer | null

export type Hello = [0, revision: Uint, incarnation: [Uint, Uint8Array], connection: Uint, attributes: Attributes, rooms: RoomIntent[]]
export type Welcome = [1, revision: Uint, epoch: Buffer, limits: Map<string, Uint>, contracts: ContractEntry[], alternates: string[]]
export type Join = [2, room: string, flags: number, capability: Uint8Array | null]
export type Joined = [3, room: string, version: Uint, members: Uint, messages: Uint, contracts: ContractEntry[]]
export type Leave = [4, room: string]
export type Left = [5, room: string, code: Uint]
export type Publish = [6, room: string, cls: number, content: number, payload: Uint8Array]
export type Send = [7, peer: Uint8Array, cls: number, content: number, payload: Uint8Array]
export type Anycast = [8, room: string, cls: number, content: number, payload: Uint8Array]
export type Deliver = [9, mode: 0 | 1 | 2, sender: Buffer, room: string | null, cls: number, content: number, payload: Buffer]
export type Members = [10, room: string, after: Uint]
export type MembersPage = [11, room: string, code: Uint, version: Uint, page: Member[], next: Uint | null]
export type Presence = [13, room: string, base: Uint, version: Uint, left: Buffer[], joined: Member[]]
export type Present = [14, room: string, capability: Uint8Array]
export type Contract = [15, room: string | null, code: Uint, contracts: ContractEntry[]]
export type Reject = [16, first: Uint, count: Uint, code: Uint, retryAfterMs: Uint]
export type Gap = [17, room: string | null, sender: Buffer | null, cls: number, count: Uint, bytes: Uint, code: Uint]
export type Pause = [18, target: Target, cls: number, forMs: Uint]
export type Resume = [19, target: Target, cls: number]
export type Ping = [20, kind: 0 | 1, token: Uint8Array]
export type Pong = [21, token: Buffer]
export type Goaway = [22, code: Uint, windowMs: Uint, spreadMs: Uint, alternates: string[]]
export type Fragment = [23, cls: number, end: 0 | 1 | 2, chunk: Buffer]
export type Stats = [24]
export type StatsReport = [25, Map<string, Uint | Uint[]>]
export type Close = [26, code: Uint, detail: string]

export type ClientMessage = Hello | Join | Leave | Publish | Send | Anycast | Members | Present | Pause | Resume | Ping | Pong | Stats | Fragment | Close
export type RelayMessage = Welcome | Joined | Left | Deliver | MembersPage | Presence | Contract | Reject | Gap | Pause | Resume | Ping | Pong | Goaway | StatsReport | Fragment | Close
export type Message = ClientMessage | RelayMessage
export type Role = 'client' | 'relay'

export const WATCH = 1
export const OBSERVE = 2
export const CONTROL_CLASS = 7

// ---- checks of the CDDL ------------------------------------------------------------------------------------------

type Check = (value: Value) => boolean

const uint: Check = v => (typeof v === 'number' || typeof v === 'bigint') && v >= 0
const count: Check = v => (typeof v === 'number' || typeof v === 'bigint') && v >= 1
const upTo = (most: number): Check => v => typeof v === 'number' && v >= 0 && v <= most
const bytes = (least: number, most: number): Check => v => v instanceof Uint8Array && v.length >= least && v.length <= most
const text = (least: number, most: number): Check => v => {
  if (typeof v !== 'string') return false
  const length = Buffer.byteLength(v)
  return length >= least && length <= most
}
const or = (...checks: Check[]): Check => v => checks.some(check => check(v))
const nil: Check = v => v === null
const list = (item: Check, most = Infinity): Check => v => Array.isArray(v) && v.length <= most && v.every(item)
const tuple = (...items: Check[]): Check => v => Array.isArray(v) && v.length === items.length && items.every((check, i) => check(v[i]))
const map = (key: Check, item: Check, most = Infinity): Check => v =>
  v instanceof Map && v.size <= most && [...v].every(([k, x]) => key(k) && item(x))

const key = bytes(32, 32)
const room = text(1, 128)
const cls = upTo(6)
const content = upTo(23)
const incarnation = tuple(uint, bytes(8, 8))
const capability = or(bytes(1, 4_096), nil)
const attribute: Check = v => v === null || typeof v !== 'object' || v instanceof Uint8Array
const attributeMap = map(text(1, 64), attribute, 16)
const attributes: Check = v => attributeMap(v) && encode(v).length <= 1_024
const member = tuple(key, uint, attributes)
const target = or(room, key, nil)
const contractEntry = tuple(cls, count, count, uint)
const contractList = list(contractEntry, 7)
const contracts: Check = v => contractList(v) && new Set((v as ContractEntry[]).map(entry => entry[0])).size === (v as Value[]).length
const alternates = list(text(1, 256), 16)
const token = bytes(0, 32)
const limits = map(text(1, 64), uint)
const modeAndRoom = (message: Value[]): boolean => (message[1] === 1) === (message[3] === null)
const chunkOfEnd = (message: Value[]): boolean => {
  const length = (message[3] as Uint8Array).length
  if (message[2] === 2) return length === 0
  return length >= (message[2] === 0 ? 1_024 : 1)
}
const targetOf = (from: Role) => (message: Value[]): boolean => (from === 'client') === (message[1] === null)

interface Kind {
  readonly name: string
  readonly from: readonly Role[]
  readonly fields: readonly Check[]
  readonly extra?: (message: Value[], from: Role) => boolean
}

const C: Role[] = ['client']
const R: Role[] = ['relay']
const CR: Role[] = ['client', 'relay']

const KINDS = new Map<number, Kind>([
  [0, { name: 'HELLO', from: C, fields: [uint, incarnation, uint, attributes, list(tuple(room, upTo(3), capability), 256)] }],
  [1, { name: 'WELCOME', from: R, fields: [uint, bytes(8, 8), limits, contracts, alternates] }],
  [2, { name: 'JOIN', from: C, fields: [room, upTo(3), capability] }],
  [3, { name: 'JOINED', from: R, fields: [room, uint, uint, uint, contracts] }],
  [4, { name: 'LEAVE', from: C, fields: [room] }],
  [5, { name: 'LEFT', from: R, fields: [room, uint] }],
  [6, { name: 'PUBLISH', from: C, fields: [room, cls, content, bytes(0, Infinity)] }],
  [7, { name: 'SEND', from: C, fields: [key, cls, content, bytes(0, Infinity)] }],
  [8, { name: 'ANYCAST', from: C, fields: [room, cls, content, bytes(0, Infinity)] }],
  [9, { name: 'DELIVER', from: R, fields: [upTo(2), key, or(room, nil), cls, content, bytes(0, Infinity)], extra: modeAndRoom }],
  [10, { name: 'MEMBERS', from: C, fields: [room, uint] }],
  [11, { name: 'MEMBERS_PAGE', from: R, fields: [room, uint, uint, list(member), or(uint, nil)] }],
  [13, { name: 'PRESENCE', from: R, fields: [room, uint, uint, list(key), list(member)] }],
  [14, { name: 'PRESENT', from: C, fields: [room, bytes(1, 4_096)] }],
  [15, { name: 'CONTRACT', from: R, fields: [or(room, nil), uint, contracts] }],
  [16, { name: 'REJECT', from: R, fields: [count, count, uint, uint] }],
  [17, { name: 'GAP', from: R, fields: [or(room, nil), or(key, nil), cls, count, uint, uint] }],
  [18, { name: 'PAUSE', from: CR, fields: [target, cls, uint], extra: (m, from) => targetOf(from)(m) }],
  [19, { name: 'RESUME', from: CR, fields: [target, cls], extra: (m, from) => targetOf(from)(m) }],
  [20, { name: 'PING', from: CR, fields: [upTo(1), token] }],
  [21, { name: 'PONG', from: CR, fields: [token] }],
  [22, { name: 'GOAWAY', from: R, fields: [uint, uint, uint, alternates] }],
  [23, { name: 'FRAGMENT', from: CR, fields: [cls, upTo(2), bytes(0, 65_536)], extra: chunkOfEnd }],
  [24, { name: 'STATS', from: C, fields: [] }],
  [25, { name: 'STATS_REPORT', from: R, fields: [map(text(1, 64), or(uint, list(uint)))] }],
  [26, { name: 'CLOSE', from: CR, fields: [uint, text(0, 256)] }],
])

export const kindName = (kind: number): string => KINDS.get(kind)?.name ?? `kind ${kind}`

/** Takes the array of a frame that `from` sent; null for an extension, which is to be ignored. */
export function parse(array: Buffer, from: Role): Message | null {
  const value = decode(array)
  if (!Array.isArray(value) || value.length === 0 || !uint(value[0])) throw protocolError('the frame is not an array that begins with its kind')
  const kind = value[0] as Uint
  if (kind >= 64) return null
  const known = KINDS.get(kind as number)
  if (known === undefined) throw new ProtocolFault('unexpected_message', `kind ${kind} is not assigned`)
  if (!known.from.includes(from)) throw new ProtocolFault('unexpected_message', `a ${from} may not send ${known.name}`)
  const matches = value.length === known.fields.length + 1 && known.fields.every((check, i) => check(value[i + 1]))
  if (!matches || known.extra?.(value, from) === false) throw protocolError(`${known.name} does not match the CDDL`)
  return value as Message
}

/** The array of a frame; refuses what the other side would refuse. */
export function serialize(message: Message, from: Role = 'client'): Buffer {
  const array = encode(message as Value)
  if (parse(array, from) === null) throw new RangeError('an extension')
  return array
}

// ---- Room names (rooms.md) ---------------------------------------------------------------------------------------

export function validRoom(name: string): boolean {
  const length = Buffer.byteLength(name)
  if (!name.isWellFormed() || length < 1 || length > 128) return false
  if (!name.startsWith('@')) return !/\p{Cc}/u.test(name)
  return /^@[0-9a-f]{64}\/./su.test(name)
}

// ---- Addresses (handshake.md) ------------------------------------------------------------------------------------

export type Address = { readonly key: Buffer } & ({ readonly path: string } | { readonly host: string, readonly port: number })

export function parseAddress(address: string): Address {
  const match = /^ac:\/\/([0-9a-f]{64})@(?:(\/.+)|(?:\[([0-9A-Fa-f:.]+)\]|([^:/@[\]]+))(?::([0-9]{1,5}))?)$/.exec(address)
  if (match === null) throw new Error('not an address: ac://KEY@host:port, KEY in 64 lower-case hexadecimal digits')
  const key = Buffer.from(match[1], 'hex')
  if (match[2] !== undefined) return { key, path: match[2] }
  const port = match[5] === undefined ? 7_420 : Number(match[5])
  if (port < 1 || port > 65_535) throw new Error('not a port')
  return { key, host: match[3] ?? match[4], port }
}
