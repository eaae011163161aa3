// cbor.md: core deterministic CBOR of few types, strict in both directions.
import { protocolError } from './errors.js'

export type Value = number | bigint | Uint8Array | string | boolean | null | Value[] | Map<string, Value>

const MAX_DEPTH = 4
const MAX_ARRAY = 4_096
const MAX_MAP = 32
const MAX_ITEMS = 65_536
const UINT64 = 1n << 64n
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

// ---- writing -----------------------------------------------------------------------------------------------------

function head(major: number, argument: number | bigint): Buffer {
  const top = major << 5
  if (argument < 24) return Buffer.of(top | Number(argument))
  if (argument < 0x100) return Buffer.of(top | 24, Number(argument))
  if (argument < 0x10000) {
    const bytes = Buffer.of(top | 25, 0, 0)
    bytes.writeUInt16BE(Number(argument), 1)
    return bytes
  }
  if (argument < 0x100000000) {
    const bytes = Buffer.alloc(5, top | 26)
    bytes.writeUInt32BE(Number(argument), 1)
    return bytes
  }
  const bytes = Buffer.alloc(9, top | 27)
  bytes.writeBigUInt64BE(BigInt(argument), 1)
  return bytes
}

export function encode(value: Value): Buffer {
  const parts: Uint8Array[] = []
  let items = 0
  const write = (item: Value, depth: number): void => {
    if (++items > MAX_ITEMS) throw new RangeError('more than 65,536 items')
    if (typeof item === 'number' || typeof item === 'bigint') {
      if (typeof item === 'number' && !Number.isSafeInteger(item)) throw new RangeError('not an integer')
      if (item >= UINT64 || item < -UINT64) throw new RangeError('an integer has at most 64 bits')
      parts.push(item >= 0 ? head(0, item) : head(1, typeof item === 'bigint' ? -1n - item : -1 - item))
    } else if (item instanceof Uint8Array) {
      parts.push(head(2, item.length), item)
    } else if (typeof item === 'string') {
      if (!item.isWellFormed()) throw new RangeError('text with a lone surrogate')
      const bytes = Buffer.from(item, 'utf8')
      parts.push(head(3, bytes.length), bytes)
    } else if (typeof item === 'boolean') {
      parts.push(Buffer.of(item ? 0xf5 : 0xf4))
    } else if (item === null) {
      parts.push(Buffer.of(0xf6))
    } else if (Array.isArray(item)) {
      if (depth >= MAX_DEPTH) throw new RangeError('nested deeper than 4')
      if (item.length > MAX_ARRAY) throw new RangeError('more than 4,096 items in an array')
      parts.push(head(4, item.length))
      for (const element of item) write(element, depth + 1)
    } else if (item instanceof Map) {
      if (depth >= MAX_DEPTH) throw new RangeError('nested deeper than 4')
      if (item.size > MAX_MAP) throw new RangeError('more than 32 entries in a map')
      parts.push(head(5, item.size))
      const entries = [...item].map(([key, element]) => {
        if (typeof key !== 'string' || !key.isWellFormed()) throw new RangeError('the key of a map is well-formed text')
        const bytes = Buffer.from(key, 'utf8')
        return { key: Buffer.concat([head(3, bytes.length), bytes]), element }
      })
      entries.sort((a, b) => Buffer.compare(a.key, b.key))
      for (const entry of entries) {
        items++
        parts.push(entry.key)
        write(entry.element, depth + 1)
      }
    } else {
      throw new TypeError('not a type of the CBOR profile')
    }
  }
  write(value, 0)
  return Buffer.concat(parts)
}

// ---- reading -----------------------------------------------------------------------------------------------------

/** Integers come as number where that is exact, else as bigint. Byte strings are views into `input`. */
export function decode(input: Buffer): Value {
  let at = 0
  let items = 0

  const need = (n: number): void => {
    if (n > input.length - at) throw protocolError('CBOR ends early')
  }

  const argument = (info: number): number | bigint => {
    if (info < 24) return info
    if (info > 27) throw protocolError('CBOR of indefinite or reserved length')
    const size = 1 << (info - 24)
    need(size)
    let value: number | bigint
    let least: number | bigint
    if (size === 1) [value, least] = [input.readUInt8(at), 24]
    else if (size === 2) [value, least] = [input.readUInt16BE(at), 0x100]
    else if (size === 4) [value, least] = [input.readUInt32BE(at), 0x10000]
    else [value, least] = [input.readBigUInt64BE(at), 0x100000000]
    at += size
    if (value < least) throw protocolError('CBOR not in the shortest form')
    return typeof value === 'bigint' && value <= Number.MAX_SAFE_INTEGER ? Number(value) : value
  }

  const bytes = (info: number): Buffer => {
    const length = argument(info)
    if (length > input.length - at) throw protocolError('CBOR ends early')
    const start = at
    at += Number(length)
    return input.subarray(start, at)
  }

  const text = (info: number): string => {
    const raw = bytes(info)
    try {
      return utf8.decode(raw)
    } catch {
      throw protocolError('text is not UTF-8')
    }
  }

  const read = (depth: number): Value => {
    if (++items > MAX_ITEMS) throw protocolError('more than 65,536 items')
    need(1)
    const initial = input[at++]
    const info = initial & 31
    switch (initial >> 5) {
      case 0: return argument(info)
      case 1: {
        const value = argument(info)
        if (typeof value === 'number' && value < Number.MAX_SAFE_INTEGER) return -1 - value
        return -1n - BigInt(value)
      }
      case 2: return bytes(info)
      case 3: return text(info)
      case 4: {
        if (depth >= MAX_DEPTH) throw protocolError('nested deeper than 4')
        const count = argument(info)
        if (count > MAX_ARRAY || count > input.length - at) throw protocolError('too many items in an array')
        const array: Value[] = []
        for (let i = 0; i < count; i++) array.push(read(depth + 1))
        return array
      }
      case 5: {
        if (depth >= MAX_DEPTH) throw protocolError('nested deeper than 4')
        const count = argument(info)
        if (count > MAX_MAP || count > input.length - at) throw protocolError('too many entries in a map')
        const map = new Map<string, Value>()
        let previous: Buffer | undefined
        for (let i = 0; i < count; i++) {
          if (++items > MAX_ITEMS) throw protocolError('more than 65,536 items')
          const start = at
          need(1)
          const keyInitial = input[at++]
          if (keyInitial >> 5 !== 3) throw protocolError('the key of a map is not text')
          const key = text(keyInitial & 31)
          const encoded = input.subarray(start, at)
          if (previous !== undefined && Buffer.compare(previous, encoded) >= 0) throw protocolError('keys of a map out of order or repeated')
          previous = encoded
          map.set(key, read(depth + 1))
        }
        return map
      }
      case 7:
        if (initial === 0xf4) return false
        if (initial === 0xf5) return true
        if (initial === 0xf6) return null
        throw protocolError('a simple value or float that the profile does not have')
      default: throw protocolError('a CBOR tag')
    }
  }

  const value = read(0)
  if (at !== input.length) throw protocolError('bytes after the CBOR item')
  return value
}
