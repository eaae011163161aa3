// frames.md: frames in the stream of the records, and fragments of frames.
import { encode } from './cbor.js'
import { protocolError, ProtocolFault } from './errors.js'
import { type Fragment, type Message, parse, type Role } from './messages.js'

export const FIRST_FRAME_LIMIT = 65_536
export const WHOLE_UP_TO = 17_408
export const CHUNK_BYTES = 16_320

export function frame(array: Uint8Array): Buffer {
  const length = Buffer.alloc(4)
  length.writeUInt32BE(array.length)
  return Buffer.concat([length, array])
}

/** Cuts the plaintext of the records into the arrays of frames. */
export class FrameReader {
  private readonly head = Buffer.alloc(4)
  private headFilled = 0
  private length = 0
  private parts: Buffer[] = []
  private missing = 0

  /** `limit` is asked for each frame anew, since WELCOME changes it. */
  constructor(private readonly limit: () => number) {}

  get insideFrame(): boolean { return this.headFilled > 0 }

  push(chunk: Buffer, take: (array: Buffer) => void): void {
    let offset = 0
    while (offset < chunk.length) {
      if (this.headFilled < 4) {
        const copied = chunk.copy(this.head, this.headFilled, offset)
        this.headFilled += copied
        offset += copied
        if (this.headFilled < 4) return
        this.length = this.missing = this.head.readUInt32BE(0)
        if (this.length === 0) throw protocolError('frame of length 0')
        if (this.length > this.limit()) throw new ProtocolFault('frame_too_large', 'frame longer than the limit')
      }
      const part = chunk.subarray(offset, offset + this.missing)
      this.parts.push(part)
      this.missing -= part.length
      offset += part.length
      if (this.missing > 0) return
      const array = this.parts.length === 1 ? this.parts[0] : Buffer.concat(this.parts, this.length)
      this.parts = []
      this.headFilled = 0
      take(array)
    }
  }
}

/** Puts fragments of one direction together, and applies their rules to whole messages too. */
export class Assembler {
  private readonly open = new Map<number, { parts: Buffer[], total: number }>()

  constructor(private readonly from: Role, private readonly limit: () => number) {}

  /** The message that is complete now, with its class judged; null if there is none. */
  take(message: Message): Message | null {
    if (message[0] !== 23) {
      const cls = ownClass(message)
      if (cls !== null && this.open.has(cls)) throw protocolError('a message of a class in which a fragmented frame is open')
      return message
    }
    return this.fragment(message)
  }

  private fragment([, cls, end, chunk]: Fragment): Message | null {
    const open = this.open.get(cls) ?? { parts: [], total: 0 }
    if (end === 2) {
      if (!this.open.delete(cls)) throw protocolError('an abort without an open frame')
      return null
    }
    open.total += chunk.length
    if (open.total > this.limit()) throw new ProtocolFault('frame_too_large', 'fragments longer than the limit')
    open.parts.push(Buffer.from(chunk))
    if (end === 0) {
      this.open.set(cls, open)
      return null
    }
    this.open.delete(cls)
    const inner = parse(Buffer.concat(open.parts, open.total), this.from)
    if (inner === null) throw protocolError('an extension in fragments')
    const innerClass = ownClass(inner)
    if (innerClass === null) throw protocolError('a message that may not be fragmented')
    if (innerClass !== cls) throw protocolError('fragments of another class than their message')
    return inner
  }
}

/** The class of a message that may be fragmented: PUBLISH, SEND, ANYCAST, DELIVER. */
function ownClass(message: Message): number | null {
  switch (message[0]) {
    case 6: case 7: case 8: return message[2]
    case 9: return message[4]
    default: return null
  }
}

/** Hands out the pieces of one array: itself if it is short, else its fragments. */
export class Cutter {
  private offset = 0

  constructor(private readonly array: Buffer, private readonly cls: number) {}

  get begun(): boolean { return this.offset > 0 }

  next(): { readonly bytes: Buffer, readonly last: boolean } {
    if (this.offset === 0 && this.array.length + 4 <= WHOLE_UP_TO) return { bytes: frame(this.array), last: true }
    const chunk = this.array.subarray(this.offset, this.offset + CHUNK_BYTES)
    this.offset += chunk.length
    const last = this.offset === this.array.length
    return { bytes: frame(encode([23, this.cls, last ? 1 : 0, chunk])), last }
  }
}
