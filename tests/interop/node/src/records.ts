// records.md: sealed pieces of a byte stream.
import { decrypt, EMPTY, encrypt, LAST_NONCE } from './crypto.js'
import { protocolError } from './errors.js'

export const MAX_PLAINTEXT = 65_519
const REKEY_EVERY = 1_024n
const ZEROS = Buffer.alloc(32)

class Direction {
  n = 0n
  constructor(public key: Buffer) {}

  advance(): void {
    if (this.n % REKEY_EVERY === REKEY_EVERY - 1n) {
      const next = encrypt(this.key, LAST_NONCE, EMPTY, ZEROS).subarray(0, 32)
      this.key.fill(0)
      this.key = next
    }
    this.n += 1n
  }
}

export class RecordSealer {
  private readonly direction: Direction
  constructor(key: Uint8Array) { this.direction = new Direction(Buffer.from(key)) }

  get key(): Buffer { return this.direction.key }

  seal(plaintext: Uint8Array): Buffer {
    if (plaintext.length < 1 || plaintext.length > MAX_PLAINTEXT) throw new RangeError('a record holds 1 to 65,519 bytes')
    if (this.direction.n >= LAST_NONCE - 1n) throw new Error('the record counter is used up')
    const ciphertext = encrypt(this.direction.key, this.direction.n, EMPTY, plaintext)
    this.direction.advance()
    const length = Buffer.alloc(2)
    length.writeUInt16BE(ciphertext.length)
    return Buffer.concat([length, ciphertext])
  }
}

export class RecordOpener {
  private readonly direction: Direction
  private readonly buffer = Buffer.alloc(2 + 65_535)
  private filled = 0

  constructor(key: Uint8Array) { this.direction = new Direction(Buffer.from(key)) }

  get key(): Buffer { return this.direction.key }
  get insideRecord(): boolean { return this.filled > 0 }

  /** Takes bytes of the transport and calls `open` with the plaintext of each record that is complete. */
  push(chunk: Buffer, open: (plaintext: Buffer) => void): void {
    let offset = 0
    while (offset < chunk.length) {
      const wanted = this.filled < 2 ? 2 : 2 + this.buffer.readUInt16BE(0)
      const copied = chunk.copy(this.buffer, this.filled, offset, offset + wanted - this.filled)
      this.filled += copied
      offset += copied
      if (this.filled < 2) return
      const length = this.buffer.readUInt16BE(0)
      if (length < 17) throw protocolError('record shorter than 17 bytes')
      if (this.filled < 2 + length) continue
      let plaintext: Buffer
      try {
        plaintext = decrypt(this.direction.key, this.direction.n, EMPTY, this.buffer.subarray(2, 2 + length))
      } catch {
        throw protocolError('a record does not open')
      }
      this.direction.advance()
      this.filled = 0
      open(plaintext)
    }
  }
}
