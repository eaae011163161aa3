// errors.md
export const CODES = {
  ok: 0, protocol_error: 1, frame_too_large: 2, unexpected_message: 3, unsupported_revision: 4, keepalive_timeout: 5,
  internal_error: 6, draining: 7, replaced: 8, superseded: 9, slow_receiver: 10, overloaded: 11, not_allowed: 12,
  session_too_old: 13, no_members: 32, no_such_peer: 33, payload_too_large: 34, rate_exceeded: 35,
  receiver_congested: 36, receiver_gone: 37, bad_room: 38, not_a_member: 39, capability_required: 40,
  capability_invalid: 41, too_many_rooms: 42, room_full: 43, evicted: 44,
} as const

export type CodeName = keyof typeof CODES
const NAMES = new Map<number, string>(Object.entries(CODES).map(([name, code]) => [code, name]))
const MAY_RETRY = new Set<number>([5, 6, 7, 10, 11, 13, 32, 33, 35, 36, 37, 42, 43])

export const codeName = (code: number): string => NAMES.get(code) ?? `code ${code}`
export const mayRetry = (code: number): boolean => MAY_RETRY.has(code)

/** What the other side did wrong: it is answered with CLOSE and this code. */
export class ProtocolFault extends Error {
  constructor(readonly code: CodeName, detail: string) { super(detail) }
}
export const protocolError = (detail: string): ProtocolFault => new ProtocolFault('protocol_error', detail)
