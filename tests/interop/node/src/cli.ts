#!/usr/bin/env node
// Drives a client by lines of JSON: one operation per line on standard input, one event per line on standard output.
import { createInterface } from 'node:readline'
import { Client, CODES, codeName, type Outcome, type ReliableOutcome } from './index.js'

interface Operation {
  op: string
  id?: unknown
  relay?: string | string[]
  seed?: string
  reconnect?: boolean
  room?: string
  peer?: string
  payload?: string
  class?: number | string
  watch?: boolean
  observe?: boolean
  reliable?: boolean
  expires_ms?: number
  timeout_ms?: number
  any?: boolean
}

const CLASSES = new Map<unknown, number>([['bulk', 0], ['data', 1], ['interactive', 4], ['urgent', 5], [undefined, 1]])
let client: Client | null = null
/** Ids of the joins under way; a `joined` without one tells that a new connection has joined again. */
const joins = new Map<string, unknown[]>()

function out(event: string, fields: Record<string, unknown> = {}): void {
  process.stdout.write(`${JSON.stringify({ event, ...fields }, (_, value: unknown) => typeof value === 'bigint' ? value.toString() : value)}\n`)
}

const need = <T>(value: T | undefined, name: string): T => {
  if (value === undefined) throw new Error(`"${name}" is missing`)
  return value
}

function hexBytes(text: string, name: string): Buffer {
  if (!/^[0-9a-f]{64}$/.test(text)) throw new Error(`"${name}" must be 64 lower-case hexadecimal digits`)
  return Buffer.from(text, 'hex')
}

const payloadOf = (operation: Operation): Buffer => Buffer.from(need(operation.payload, 'payload'), 'base64')

function classOf(operation: Operation): number {
  const cls = typeof operation.class === 'number' ? operation.class : CLASSES.get(operation.class)
  if (cls === undefined) throw new Error('not a class')
  return cls
}

function start(operation: Operation): Client {
  const made = new Client({
    relays: need(operation.relay, 'relay'),
    seed: operation.seed === undefined ? undefined : hexBytes(operation.seed, 'seed'),
    reconnect: operation.reconnect,
    onRequest: request => request.payload, // an echo, so that the other side has something to ask
    onMessage: message => out('message', {
      mode: message.mode, room: message.room, sender: message.sender.toString('hex'), class: message.cls,
      reliable: message.reliable, payload: message.payload.toString('base64'),
    }),
  })
  made.on('connected', (relay, epoch) => out('connected', { relay, key: made.key, epoch: epoch.toString('hex') }))
  made.on('disconnected', (end, retry) => out('disconnected', { code: end.code, by: end.by, detail: end.detail, retry_ms: retry }))
  made.on('joined', state => {
    const id = joins.get(state.room)?.shift()
    out('joined', { id, room: state.room, version: state.version, members: state.members, messages: state.messages })
  })
  made.on('left', (room, code) => out('left', { room, code, name: codeName(code) }))
  made.on('gap', gap => out('gap', { room: gap.room, sender: gap.sender?.toString('hex') ?? null, class: gap.cls, count: gap.count, code: gap.code, local: gap.local }))
  made.on('presence', (room, left, joined) => out('presence', { room, left: left.map(key => key.toString('hex')), joined: joined.map(member => member.key.toString('hex')) }))
  made.on('paused', (destination, cls, forMs) => out('paused', { destination, class: cls, for_ms: forMs }))
  made.on('goaway', message => out('goaway', { code: message[1], window_ms: message[2], spread_ms: message[3] }))
  made.on('fault', error => out('error', { message: String(error) }))
  made.on('closed', end => {
    out('closed', { code: end?.code ?? null, name: end?.code == null ? null : codeName(end.code), detail: end?.detail ?? '' })
    process.exitCode = end === null || end.code === CODES.ok ? 0 : 1
    lines.close()
    process.stdin.destroy()
  })
  made.on('rejected', what => {
    if (what.late) out('rejected', { late: true, destination: what.destination, class: what.cls, code: what.code, name: codeName(what.code), retry_after_ms: what.retryAfterMs })
  })
  return made
}

function settled(id: unknown, outcome: Outcome): void {
  if (outcome.kind === 'refused') out('rejected', { id, code: outcome.code, name: codeName(outcome.code), retry_after_ms: outcome.retryAfterMs })
  else out(outcome.kind, { id })
}

function settledReliably(id: unknown, outcome: ReliableOutcome): void {
  if (typeof outcome === 'object') out('rejected', { id, reason: outcome.refused })
  else out(outcome, { id })
}

async function run(operation: Operation): Promise<void> {
  const { id } = operation
  if (operation.op === 'connect') {
    if (client !== null) throw new Error('connected already')
    client = start(operation)
    return client.connect()
  }
  const node = client
  if (node === null) throw new Error('connect first')
  switch (operation.op) {
    case 'join': {
      const room = need(operation.room, 'room')
      joins.set(room, [...joins.get(room) ?? [], id])
      await node.join(room, { watch: operation.watch, observe: operation.observe }).catch((error: unknown) => {
        joins.get(room)?.shift()
        throw error
      })
      return
    }
    case 'leave':
      return node.leave(need(operation.room, 'room'))
    case 'members': {
      const room = need(operation.room, 'room')
      const members = await node.members(room)
      return out('members', { id, room, members: members.map(member => ({ key: member.key.toString('hex'), joined: member.joined })) })
    }
    case 'publish':
      return settled(id, await node.publish(need(operation.room, 'room'), payloadOf(operation), { cls: classOf(operation) }))
    case 'anycast':
      return settled(id, await node.anycast(need(operation.room, 'room'), payloadOf(operation), { cls: classOf(operation) }))
    case 'send': {
      const peer = hexBytes(need(operation.peer, 'peer'), 'peer')
      const cls = classOf(operation)
      if (!operation.reliable) return settled(id, await node.send(peer, payloadOf(operation), { cls }))
      return settledReliably(id, await node.sendReliable(peer, payloadOf(operation), { cls, expiresMs: operation.expires_ms }))
    }
    case 'request': {
      const options = { cls: classOf(operation), timeoutMs: operation.timeout_ms, reliable: operation.reliable }
      const answer = operation.any
        ? await node.requestAny(need(operation.room, 'room'), payloadOf(operation), options)
        : await node.request(hexBytes(need(operation.peer, 'peer'), 'peer'), payloadOf(operation), options)
      return out('response', { id, payload: answer.toString('base64') })
    }
    case 'flush':
      await node.flush()
      return out('flushed', { id })
    case 'ping':
      await node.ping()
      return out('pong', { id })
    case 'stats':
      return out('stats', { id, report: Object.fromEntries(await node.statistics()) })
    case 'break':
      return node.breakConnection()
    case 'close':
      return node.close()
    default:
      throw new Error(`unknown op "${operation.op}"`)
  }
}

const lines = createInterface({ input: process.stdin })
lines.on('line', line => {
  if (line.trim() === '') return
  let operation: Operation
  try {
    operation = JSON.parse(line) as Operation
  } catch {
    return out('error', { message: 'not a line of JSON' })
  }
  run(operation).catch((error: unknown) => out('error', { id: operation.id, op: operation.op, message: (error as Error).message }))
})
lines.on('close', () => { void client?.close() })
