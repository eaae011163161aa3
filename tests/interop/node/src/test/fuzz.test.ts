// Mangled frames: a real relay (AC_RELAY) must judge each as this client's own reader of the profile and the CDDL does.
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { encode, type Value } from '../cbor.js'
import { CODES, type CodeName, ProtocolFault } from '../errors.js'
import { Assembler, frame } from '../frames.js'
import { parse } from '../messages.js'
import { EMPTY, Raw, RELAY } from './raw.js'

const CASES = Number(process.env.AC_FUZZ ?? 400)
let state = Number(process.env.AC_SEED ?? 1)
const random = (n: number): number => { // mulberry32
  state = (state + 0x6d2b79f5) | 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) % n
}

const ROOM = 'fuzz'
const samples: Value[] = [
  [2, ROOM, 1, null], [2, ROOM, 0, Buffer.of(1, 2)], [4, ROOM], [6, ROOM, 1, 0, Buffer.from('hello')], [7, Buffer.alloc(32, 3), 4, 2, EMPTY],
  [8, 'räume', 0, 23, Buffer.alloc(30)], [10, ROOM, 0], [10, ROOM, 70_000], [14, ROOM, Buffer.of(1)], [18, null, 3, 1_000], [19, null, 3],
  [20, 0, Buffer.of(1)], [20, 1, EMPTY], [21, Buffer.alloc(8)], [24], [64, new Map<string, Value>([['a', 1], ['bb', [1, -5, true]]]), 'text', null],
  [100, 2n ** 40n, [[[1]]]], [23, 1, 1, encode([6, ROOM, 1, 0, Buffer.from('inner')])],
]
const BYTES = [0, 1, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1f, 0x20, 0x40, 0x41, 0x58, 0x60, 0x61, 0x78, 0x80, 0x81, 0x9f, 0xa0, 0xa1, 0xc0, 0xe0, 0xf4, 0xf6, 0xf7, 0xf8, 0xfa, 0xfb, 0xff]

function mangle(array: Buffer): Buffer {
  const bytes = [...array]
  for (let n = 1 + random(2); n > 0; n--) {
    const at = random(random(2) ? bytes.length : Math.min(bytes.length, 6))
    const byte = random(2) ? BYTES[random(BYTES.length)] : random(256)
    switch (random(4)) {
      case 0: bytes.splice(at, 1); break
      case 1: bytes.splice(at, 0, byte); break
      case 2: bytes[at] ^= 1 << random(8); break
      default: bytes[at] = byte
    }
  }
  return Buffer.from(bytes.length === 0 ? [0] : bytes)
}

function verdict(array: Buffer): CodeName | 'lives' {
  try {
    const message = parse(array, 'client')
    if (message === null) return 'lives'
    if (message[0] === 0) return 'unexpected_message' // HELLO twice
    if (message[0] === 26) return 'ok'
    new Assembler('client', () => 1_049_600).take(message)
    return message[0] === 23 && message[2] === 0 ? 'internal_error' : 'lives'
  } catch (error) {
    assert.ok(error instanceof ProtocolFault)
    return error.code
  }
}

describe('mangled frames', { skip: RELAY === undefined && 'set AC_RELAY to the address of a relay' }, () => {
  it(`are judged alike, ${CASES} times`, async t => {
    const differences: string[] = []
    const counts = new Map<string, number>()
    let raw = await Raw.greeted()
    for (let i = 0; i < CASES; i++) {
      const array = mangle(encode(samples[random(samples.length)]))
      const expected = verdict(array)
      if (expected === 'internal_error') continue // would leave a fragmented frame open
      counts.set(expected, (counts.get(expected) ?? 0) + 1)
      raw.bytes(frame(array))
      const token = Buffer.from(`token ${i}`)
      raw.bytes(frame(encode([20, 0, token])))
      let actual = ''
      for (const end = Date.now() + 2_000; actual === ''; await new Promise(resolve => setImmediate(resolve))) {
        const close = raw.frames.find(one => one[0] === 26)
        if (close !== undefined) actual = Object.entries(CODES).find(([, code]) => code === close[1])![0]
        else if (raw.frames.some(one => one[0] === 21 && token.equals(one[1] as Uint8Array))) actual = 'lives'
        else if (Date.now() > end) actual = 'silence'
        else if (raw.ended) actual = 'an end without CLOSE'
      }
      if (actual !== expected) differences.push(`${array.toString('hex')}: expected ${expected}, the relay: ${actual}`)
      raw.frames.length = 0
      if (actual !== 'lives') {
        raw.socket.destroy()
        raw = await Raw.greeted()
      }
    }
    raw.socket.destroy()
    t.diagnostic([...counts].map(([code, n]) => `${code}: ${n}`).join(', '))
    assert.deepEqual(differences, [])
  })
})
