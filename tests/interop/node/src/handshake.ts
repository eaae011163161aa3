// ZeroProof (handshake.md): three acts, after which both sides know each other's identity and share the record keys.
import { decrypt, EMPTY, encrypt, hkdf, identityImage, sameBytes, sha256, x25519, x25519Pair, type Identity, type KeyPair } from './crypto.js'

export const ACT1_BYTES = 36
export const ACT2_BYTES = 128
export const ACT3_BYTES = 96
const PREFACE = Buffer.from('41574301', 'hex')
const NAME = Buffer.from('Noise_XX_25519_ChaChaPoly_SHA256', 'ascii')

export class HandshakeError extends Error {}
export class WrongKeyError extends HandshakeError {}

export interface RecordKeys { readonly toRelay: Buffer, readonly toClient: Buffer, readonly hash: Buffer, readonly peer: Buffer }

/** h, ck, k and n of the Noise protocol. */
export class Symmetric {
  h: Buffer = NAME
  ck: Buffer = NAME
  k: Buffer = EMPTY
  private n = 0n

  constructor() { this.mixHash(PREFACE) }

  mixHash(x: Uint8Array): void { this.h = sha256(this.h, x) }

  mixKey(x: Uint8Array): void {
    [this.ck, this.k] = hkdf(this.ck, x)
    this.n = 0n
  }

  encryptAndHash(x: Uint8Array): Buffer {
    const c = encrypt(this.k, this.n++, this.h, x)
    this.mixHash(c)
    return c
  }

  decryptAndHash(c: Uint8Array): Buffer {
    const x = decrypt(this.k, this.n++, this.h, c)
    this.mixHash(c)
    return x
  }

  split(peer: Buffer): RecordKeys {
    const [toRelay, toClient] = hkdf(this.ck, EMPTY)
    const hash = this.h
    this.ck.fill(0)
    this.k.fill(0)
    this.ck = this.k = EMPTY
    return { toRelay, toClient, hash, peer }
  }
}

function checkIdentity(identity: Buffer, provenStatic: Buffer, own: Identity): void {
  let image: Buffer
  try {
    image = identityImage(identity)
  } catch (error) {
    throw new HandshakeError(`not a valid identity: ${(error as Error).message}`)
  }
  if (!sameBytes(image, provenStatic)) throw new HandshakeError('the identity is not that of the static key')
  if (sameBytes(image, own.image.publicKey)) throw new HandshakeError('the identity is the own one')
}

function guarded<T>(step: () => T): T {
  try {
    return step()
  } catch (error) {
    if (error instanceof HandshakeError) throw error
    throw new HandshakeError((error as Error).message, { cause: error })
  }
}

export class ClientHandshake {
  readonly symmetric = new Symmetric()
  private next: 1 | 2 | 3 = 1

  /** `ephemeral` is for vectors only. */
  constructor(private readonly own: Identity, private readonly pinned: Uint8Array, private readonly ephemeral: KeyPair = x25519Pair()) {
    if (pinned.length !== 32) throw new HandshakeError('the pinned key must have 32 bytes')
  }

  act1(): Buffer {
    if (this.next !== 1) throw new HandshakeError('act 1 is over')
    this.next = 2
    this.symmetric.mixHash(this.ephemeral.publicKey)
    this.symmetric.mixHash(EMPTY)
    return Buffer.concat([PREFACE, this.ephemeral.publicKey])
  }

  /** Takes act 2 and answers with act 3 and the keys. */
  act3(act2: Buffer): { act3: Buffer, keys: RecordKeys } {
    if (this.next !== 2) throw new HandshakeError('not the time of act 2')
    this.next = 3
    return guarded(() => {
      if (act2.length !== ACT2_BYTES) throw new HandshakeError('act 2 has 128 bytes')
      const s = this.symmetric
      const relayEphemeral = act2.subarray(0, 32)
      s.mixHash(relayEphemeral)
      s.mixKey(x25519(this.ephemeral.privateKey, relayEphemeral))
      const relayStatic = s.decryptAndHash(act2.subarray(32, 80))
      s.mixKey(x25519(this.ephemeral.privateKey, relayStatic))
      const identity = s.decryptAndHash(act2.subarray(80, 128))
      if (!sameBytes(identity, this.pinned)) throw new WrongKeyError('the relay proved another key than the pinned one')
      checkIdentity(identity, relayStatic, this.own)
      const c3 = s.encryptAndHash(this.own.image.publicKey)
      s.mixKey(x25519(this.own.image.privateKey, relayEphemeral))
      const c4 = s.encryptAndHash(this.own.publicKey)
      this.ephemeral.privateKey.fill(0)
      return { act3: Buffer.concat([c3, c4]), keys: s.split(identity) }
    })
  }
}

/** The relay's side; this package uses it in its tests only. */
export class RelayHandshake {
  readonly symmetric = new Symmetric()
  private next: 2 | 3 | 4 = 2

  constructor(private readonly own: Identity, private readonly ephemeral: KeyPair = x25519Pair()) {}

  /** Throws as soon as the bytes received so far differ from the preface. */
  static checkPreface(bytes: Uint8Array): void {
    const n = Math.min(bytes.length, PREFACE.length)
    if (!PREFACE.subarray(0, n).equals(bytes.subarray(0, n))) throw new HandshakeError('not the preface')
  }

  act2(act1: Buffer): Buffer {
    if (this.next !== 2) throw new HandshakeError('act 1 is over')
    this.next = 3
    return guarded(() => {
      if (act1.length !== ACT1_BYTES) throw new HandshakeError('act 1 has 36 bytes')
      RelayHandshake.checkPreface(act1)
      const s = this.symmetric
      const clientEphemeral = act1.subarray(4)
      s.mixHash(clientEphemeral)
      s.mixHash(EMPTY)
      s.mixHash(this.ephemeral.publicKey)
      s.mixKey(x25519(this.ephemeral.privateKey, clientEphemeral))
      const c1 = s.encryptAndHash(this.own.image.publicKey)
      s.mixKey(x25519(this.own.image.privateKey, clientEphemeral))
      const c2 = s.encryptAndHash(this.own.publicKey)
      return Buffer.concat([this.ephemeral.publicKey, c1, c2])
    })
  }

  finish(act3: Buffer): RecordKeys {
    if (this.next !== 3) throw new HandshakeError('not the time of act 3')
    this.next = 4
    return guarded(() => {
      if (act3.length !== ACT3_BYTES) throw new HandshakeError('act 3 has 96 bytes')
      const s = this.symmetric
      const clientStatic = s.decryptAndHash(act3.subarray(0, 48))
      s.mixKey(x25519(this.ephemeral.privateKey, clientStatic))
      const identity = s.decryptAndHash(act3.subarray(48, 96))
      checkIdentity(identity, clientStatic, this.own)
      this.ephemeral.privateKey.fill(0)
      return s.split(identity)
    })
  }
}
