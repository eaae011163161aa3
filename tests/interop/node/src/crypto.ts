// The functions and keys of handshake.md.
import { createCipheriv, createDecipheriv, createHash, createHmac, createPrivateKey, createPublicKey, diffieHellman, randomBytes, timingSafeEqual, type KeyObject } from 'node:crypto'
import { ed25519, edwardsToMontgomeryPub } from '@noble/curves/ed25519'

export const EMPTY = Buffer.alloc(0)
const TAG = 16
export const LAST_NONCE = 2n ** 64n - 1n

export const sha256 = (...parts: Uint8Array[]): Buffer => {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest()
}

const hmac = (key: Uint8Array, ...parts: Uint8Array[]): Buffer => {
  const mac = createHmac('sha256', key)
  for (const part of parts) mac.update(part)
  return mac.digest()
}

export function hkdf(ck: Uint8Array, input: Uint8Array): [Buffer, Buffer] {
  const t = hmac(ck, input)
  const a = hmac(t, Buffer.of(1))
  return [a, hmac(t, a, Buffer.of(2))]
}

function nonceBytes(n: bigint): Buffer {
  const nonce = Buffer.alloc(12)
  nonce.writeBigUInt64LE(n, 4)
  return nonce
}

export function encrypt(key: Uint8Array, n: bigint, ad: Uint8Array, plaintext: Uint8Array): Buffer {
  const cipher = createCipheriv('chacha20-poly1305', key, nonceBytes(n), { authTagLength: TAG })
  if (ad.length) cipher.setAAD(ad, { plaintextLength: plaintext.length })
  return Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()])
}

/** Throws if the tag is wrong or the ciphertext is shorter than one. */
export function decrypt(key: Uint8Array, n: bigint, ad: Uint8Array, ciphertext: Uint8Array): Buffer {
  if (ciphertext.length < TAG) throw new Error('ciphertext is shorter than its tag')
  const end = ciphertext.length - TAG
  const decipher = createDecipheriv('chacha20-poly1305', key, nonceBytes(n), { authTagLength: TAG })
  if (ad.length) decipher.setAAD(ad, { plaintextLength: end })
  decipher.setAuthTag(ciphertext.subarray(end))
  const plaintext = decipher.update(ciphertext.subarray(0, end))
  return Buffer.concat([plaintext, decipher.final()])
}

export const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && timingSafeEqual(a, b)

// ---- X25519 ------------------------------------------------------------------------------------------------------

const PRIVATE_PREFIX = Buffer.from('302e020100300506032b656e04220420', 'hex')
const PUBLIC_PREFIX = Buffer.from('302a300506032b656e032100', 'hex')

function need32(bytes: Uint8Array, what: string): void {
  if (bytes.length !== 32) throw new Error(`${what} must have 32 bytes`)
}

const privateObject = (bytes: Uint8Array): KeyObject =>
  createPrivateKey({ key: Buffer.concat([PRIVATE_PREFIX, bytes]), format: 'der', type: 'pkcs8' })

export interface KeyPair { readonly privateKey: Buffer, readonly publicKey: Buffer }

export function x25519Pair(privateKey: Uint8Array = randomBytes(32)): KeyPair {
  need32(privateKey, 'an X25519 private key')
  const der = createPublicKey(privateObject(privateKey)).export({ format: 'der', type: 'spki' })
  return { privateKey: Buffer.from(privateKey), publicKey: Buffer.from(der.subarray(-32)) }
}

/** Throws when the result is all zero. */
export function x25519(privateKey: Uint8Array, publicKey: Uint8Array): Buffer {
  need32(privateKey, 'an X25519 private key')
  need32(publicKey, 'an X25519 public key')
  const theirs = createPublicKey({ key: Buffer.concat([PUBLIC_PREFIX, publicKey]), format: 'der', type: 'spki' })
  const shared = diffieHellman({ privateKey: privateObject(privateKey), publicKey: theirs })
  if (sameBytes(shared, Buffer.alloc(32))) throw new Error('the X25519 output is all zero')
  return shared
}

// ---- Identities --------------------------------------------------------------------------------------------------

export class Identity {
  readonly publicKey: Buffer
  readonly image: KeyPair

  constructor(readonly seed: Uint8Array = randomBytes(32)) {
    need32(seed, 'a seed')
    this.publicKey = Buffer.from(ed25519.getPublicKey(seed))
    const d = createHash('sha512').update(seed).digest().subarray(0, 32)
    d[0] &= 0xf8
    d[31] = (d[31] & 0x7f) | 0x40
    this.image = x25519Pair(d)
  }

  get hex(): string { return this.publicKey.toString('hex') }
}

/** The X25519 image of an identity, or an error if it is none that the handshake accepts. */
export function identityImage(identity: Uint8Array): Buffer {
  need32(identity, 'an identity')
  const point = ed25519.ExtendedPoint.fromHex(identity, false) // false: canonical encodings only
  if (point.is0() || !point.isTorsionFree()) throw new Error('the identity is not a point of the prime-order subgroup')
  return Buffer.from(edwardsToMontgomeryPub(identity))
}
