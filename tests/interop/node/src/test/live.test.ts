// Against a real relay: AC_RELAY is its address. AC_COMMAND is the path of `awesomeconnect`, for peers and for restarts.
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Client, type ClientOptions, CODES, type GapReport, type Received } from '../index.js'

const RELAY = process.env.AC_RELAY
const COMMAND = process.env.AC_COMMAND
const noRelay = RELAY === undefined && 'set AC_RELAY to the address of a relay'
const noCommand = (RELAY === undefined || COMMAND === undefined) && 'set AC_RELAY, and AC_COMMAND to the path of awesomeconnect'

const clients: Client[] = []
const children: ChildProcess[] = []
after(async () => {
  await Promise.all(clients.map(client => client.close(100)))
  for (const child of children) child.kill('SIGKILL')
})

interface Node { readonly client: Client, readonly got: Received[], readonly gaps: GapReport[] }

async function node(options: Partial<ClientOptions> = {}): Promise<Node> {
  const got: Received[] = []
  const gaps: GapReport[] = []
  const client = new Client({ relays: RELAY!, onMessage: message => { got.push(message) }, ...options })
  client.on('gap', gap => gaps.push(gap))
  clients.push(client)
  await client.connect()
  return { client, got, gaps }
}

async function until(condition: () => boolean, what: string, ms = 10_000): Promise<void> {
  const end = Date.now() + ms
  while (!condition()) {
    assert.ok(Date.now() < end, `not in time: ${what}`)
    await new Promise(resolve => setTimeout(resolve, 5))
  }
}

const room = (): string => `test-${randomBytes(6).toString('hex')}`
const texts = (got: Received[]): string[] => got.map(message => message.payload.toString())

describe('two clients', { skip: noRelay }, () => {
  it('broadcast, and not to the sender', async () => {
    const [a, b, c] = [await node(), await node(), await node()]
    const name = room()
    const states = [await a.client.join(name), await b.client.join(name), await c.client.join(name)]
    assert.deepEqual(states.map(state => state.members), [1, 2, 3])
    for (let i = 0; i < 300; i++) void a.client.publish(name, Buffer.from(String(i)))
    await a.client.flush()
    await until(() => b.got.length === 300 && c.got.length === 300, 'the broadcasts')
    assert.deepEqual(texts(b.got), [...Array(300).keys()].map(String))
    assert.equal(a.got.length, 0)
    assert.equal(b.got[0].sender.toString('hex'), a.client.key)
    assert.equal(b.got[0].mode, 'broadcast')
  })

  it('unicast, to oneself too; anycast in turn', async () => {
    const [a, b, c] = [await node(), await node(), await node()]
    assert.deepEqual(await a.client.send(b.client.identity.publicKey, Buffer.from('one'), { cls: 5 }), { kind: 'accepted' })
    assert.deepEqual(await a.client.send(a.client.identity.publicKey, Buffer.alloc(0)), { kind: 'accepted' })
    await until(() => b.got.length === 1 && a.got.length === 1, 'the unicasts')
    assert.deepEqual({ ...b.got[0], payload: 0, sender: 0 }, { mode: 'unicast', sender: 0, room: null, cls: 5, payload: 0, reliable: false })
    const name = room()
    for (const one of [a, b, c]) await one.client.join(name)
    for (let i = 0; i < 10; i++) assert.deepEqual(await a.client.anycast(name, Buffer.from('job')), { kind: 'accepted' })
    await until(() => b.got.length === 6 && c.got.length === 5, 'the anycasts')
    assert.equal(a.got.length, 1)
    assert.equal(c.got[0].mode, 'anycast')
  })

  it('refuses by REJECT with the right ordinals', async () => {
    const [a, b] = [await node(), await node()]
    const name = room()
    await b.client.join(name)
    const outcomes = await Promise.all([
      a.client.publish(name, Buffer.from('x')), a.client.publish(room(), Buffer.from('x')), a.client.send(randomBytes(32), Buffer.from('x')),
      a.client.publish(name, Buffer.from('y'), { cls: 0 }), a.client.publish('@lobby', Buffer.from('x')), a.client.anycast(room(), Buffer.alloc(50_000)),
      a.client.publish(name, Buffer.alloc(1_048_577)),
    ])
    const codes = outcomes.map(outcome => outcome.kind === 'refused' ? outcome.code : outcome.kind)
    assert.deepEqual(codes, ['accepted', CODES.no_members, CODES.no_such_peer, 'accepted', CODES.bad_room, CODES.no_members, CODES.payload_too_large])
    await until(() => b.got.length === 2, 'the accepted ones')
  })

  it('long messages in fragments, urgent ones between them', async () => {
    const [a, b] = [await node(), await node()]
    const name = room()
    await b.client.join(name)
    const payload = randomBytes(900_000)
    const most = randomBytes(1_048_576)
    void a.client.publish(name, payload, { cls: 0 })
    void a.client.publish(name, most, { cls: 1 })
    void a.client.publish(name, Buffer.from('urgent'), { cls: 5 })
    await a.client.flush()
    await until(() => b.got.length === 3, 'the three messages')
    assert.equal(b.got[0].payload.toString(), 'urgent')
    assert.ok(b.got.find(message => message.cls === 0)?.payload.equals(payload))
    assert.ok(b.got.find(message => message.cls === 1)?.payload.equals(most))
  })

  it('rekeys in both directions', async () => {
    const a = await node()
    for (let i = 0; i < 2_200; i++) await a.client.ping() // each a record
    assert.ok(a.client.isConnected)
  })

  it('members, presence, leave', async () => {
    const [a, b] = [await node(), await node({ attributes: new Map<string, string>([['name', 'bert']]) })]
    const name = room()
    await a.client.join(name, { watch: true, observe: true })
    const joined = await b.client.join(name)
    assert.equal(joined.members, 1)
    await until(() => a.client.view(name).length === 1, 'b in the view')
    const [member] = await a.client.members(name)
    assert.equal(member.key.toString('hex'), b.client.key)
    assert.equal(member.attributes.get('name'), 'bert')
    await assert.rejects(b.client.members(room()), /not_a_member/)
    await b.client.leave(name)
    await until(() => a.client.view(name).length === 0, 'b gone from the view')
    await assert.rejects(a.client.join('@lobby'), /bad_room/)
    const own = `@${a.client.key}/mine`
    await a.client.join(own)
    await assert.rejects(b.client.join(own), /capability_required/)
    await assert.rejects(b.client.present(own, Buffer.from('x')), /capability_required/)
    await a.client.present(own, Buffer.from('x'))
    assert.ok((await a.client.statistics()).size > 0)
  })

  it('requests and responses', async () => {
    const [a, b] = [await node(), await node({ onRequest: request => {
      if (request.payload.toString() === 'fail') throw new Error('no')
      return Buffer.from(request.payload.toString().toUpperCase())
    } })]
    const name = room()
    await b.client.join(name)
    assert.equal((await a.client.request(b.client.identity.publicKey, Buffer.from('ping'))).toString(), 'PING')
    assert.equal((await a.client.requestAny(name, Buffer.from('any'))).toString(), 'ANY')
    assert.equal((await a.client.request(b.client.identity.publicKey, Buffer.from('sure'), { reliable: true })).toString(), 'SURE')
    await assert.rejects(a.client.request(b.client.identity.publicKey, Buffer.from('fail')), /^Error: no$/)
    await assert.rejects(a.client.request(randomBytes(32), Buffer.from('x')), /no_such_peer/)
  })

  it('reliable messages across broken connections, once and in order', async () => {
    const [a, b] = [await node(), await node()]
    const outcomes = [...Array(200).keys()].map(i => a.client.sendReliable(b.client.identity.publicKey, Buffer.from(String(i))))
    for (const one of [a, b, a]) {
      await new Promise(resolve => setTimeout(resolve, 5))
      one.client.breakConnection()
    }
    assert.deepEqual(new Set(await Promise.all(outcomes)), new Set(['delivered']))
    assert.deepEqual(texts(b.got), [...Array(200).keys()].map(String))
    const big = randomBytes(900_000)
    assert.equal(await a.client.sendReliable(b.client.identity.publicKey, big, { cls: 0 }), 'delivered')
    assert.ok(b.got.at(-1)!.payload.equals(big))
    assert.equal(await a.client.sendReliable(randomBytes(32), Buffer.from('x'), { expiresMs: 300 }), 'expired')
  })

  it('a receiver that takes its time gets everything, by PAUSE', async () => {
    const a = await node()
    let taken = 0
    const b = await node({ onMessage: async () => { await new Promise(resolve => setTimeout(resolve, 2)); taken++ } })
    const name = room()
    await b.client.join(name)
    for (let i = 0; i < 400; i++) {
      await a.client.writable(0)
      void a.client.publish(name, Buffer.alloc(60_000), { cls: 0 })
      if (i % 16 === 15) await a.client.flush() // at most 1 MiB without a verdict: more could be under way when PAUSE comes
    }
    await a.client.flush()
    await until(() => taken === 400, `all of it (${taken})`, 30_000)
    assert.deepEqual(b.gaps, [])
  })

  it('replaced by another process with the same key', async () => {
    const a = await node()
    const script = fileURLToPath(new URL('../cli.js', import.meta.url))
    const ended = once(a.client, 'closed')
    const child = spawn(process.execPath, [script], { stdio: ['pipe', 'pipe', 'inherit'] })
    children.push(child)
    child.stdin!.write(`${JSON.stringify({ op: 'connect', relay: RELAY, seed: Buffer.from(a.client.identity.seed).toString('hex') })}\n`)
    const [end] = await ended
    assert.equal(end.code, CODES.replaced)
    child.stdin!.end()
    await once(child, 'exit')
  })
})

describe('the driver', { skip: noRelay }, () => {
  it('speaks lines of JSON', async () => {
    const b = await node()
    const child = spawn(process.execPath, [fileURLToPath(new URL('../cli.js', import.meta.url))], { stdio: ['pipe', 'pipe', 'inherit'] })
    children.push(child)
    const events: Array<Record<string, unknown>> = []
    createInterface({ input: child.stdout! }).on('line', line => events.push(JSON.parse(line) as Record<string, unknown>))
    const say = (operation: object): void => { child.stdin!.write(`${JSON.stringify(operation)}\n`) }
    const event = async (name: string): Promise<Record<string, unknown>> => {
      await until(() => events.some(one => one.event === name), name)
      return events.find(one => one.event === name)!
    }
    say({ op: 'connect', relay: RELAY })
    const { key } = await event('connected')
    say({ op: 'join', room: 'driver', id: 1 })
    await event('joined')
    await b.client.publish('driver', Buffer.from('hello'))
    assert.equal((await event('message')).payload, Buffer.from('hello').toString('base64'))
    say({ op: 'send', peer: b.client.key, payload: 'aGk=', reliable: true, id: 2 })
    assert.equal((await event('delivered')).id, 2)
    say({ op: 'publish', room: 'nobody-here', payload: 'aGk=', id: 3 })
    assert.deepEqual(await event('rejected'), { event: 'rejected', id: 3, code: CODES.no_members, name: 'no_members', retry_after_ms: 0 })
    assert.equal((await b.client.request(Buffer.from(key as string, 'hex'), Buffer.from('echo'))).toString(), 'echo')
    say({ op: 'nonsense' })
    await event('error')
    say({ op: 'close' })
    assert.equal((await event('closed')).code, 0)
    if (child.exitCode === null) await once(child, 'exit')
  })
})

describe('the commands of awesomeconnect as peers', { skip: noCommand }, () => {
  const environment = { ...process.env, AWESOMECONNECT_RELAY: RELAY }

  /** Starts a command, and resolves once its standard error says that it is ready. */
  async function run(args: string[]): Promise<{ ready: string, output: Promise<Buffer> }> {
    const child = spawn(COMMAND!, args, { env: environment, stdio: ['ignore', 'pipe', 'pipe'] })
    children.push(child)
    const output = new Promise<Buffer>(resolve => {
      const chunks: Buffer[] = []
      child.stdout!.on('data', (chunk: Buffer) => chunks.push(chunk))
      child.stdout!.on('end', () => resolve(Buffer.concat(chunks)))
    })
    const [ready] = await once(createInterface({ input: child.stderr! }), 'line') as [string]
    return { ready, output }
  }

  const feed = (args: string[], input: Buffer): string => execFileSync(COMMAND!, args, { env: environment, input, timeout: 20_000 }).toString()

  it('pub and sub', async () => {
    const a = await node()
    const name = room()
    await a.client.join(name)
    const data = randomBytes(2_000_000)
    const file = join(mkdtempSync(join(tmpdir(), 'ac-')), 'data')
    writeFileSync(file, data)
    feed(['pub', name, file, '--size', '900000', '--class', 'bulk'], Buffer.alloc(0))
    await until(() => a.got.length === 3, 'three messages')
    assert.ok(Buffer.concat(a.got.map(message => message.payload)).equals(data))

    const { ready, output } = await run(['sub', name, '--count', '3', '--wait', '10'])
    assert.match(ready, /joined/)
    const parts = [randomBytes(900_000), randomBytes(10), randomBytes(20_000)]
    for (const part of parts) assert.equal((await a.client.publish(name, part)).kind, 'accepted')
    const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
    assert.equal(digest(await output), digest(Buffer.concat(parts)))
  })

  it('send and recv', async () => {
    const a = await node()
    feed(['send', a.client.key, '--class', 'urgent'], Buffer.from('hello'))
    await until(() => a.got.length === 1, 'the message')
    assert.equal(a.got[0].cls, 5)
    assert.equal(a.got[0].payload.toString(), 'hello')

    const { ready, output } = await run(['recv', '--count', '2', '--lines', '--wait', '10'])
    const key = /[0-9a-f]{64}/.exec(ready)![0]
    assert.deepEqual(await a.client.send(Buffer.from(key, 'hex'), Buffer.from('plain')), { kind: 'accepted' })
    const reliable = await a.client.sendReliable(Buffer.from(key, 'hex'), Buffer.from('reliable'), { expiresMs: 5_000 })
    assert.equal(reliable, 'delivered')
    assert.equal((await output).toString(), 'plain\nreliable\n')
  })

  it('who, and pub --any', async () => {
    const a = await node({ attributes: new Map<string, string | boolean>([['name', 'Räuber'], ['full', true]]) })
    const name = room()
    await a.client.join(name)
    assert.match(feed(['who', name, '--json'], Buffer.alloc(0)), new RegExp(a.client.key))
    feed(['pub', name, '--any', '--lines'], Buffer.from('x\ny\n'))
    await until(() => a.got.length === 2, 'two anycasts')
    assert.equal(a.got[1].mode, 'anycast')
  })
})

describe('across a restart of the relay', { skip: noCommand }, () => {
  const key = join(mkdtempSync(join(tmpdir(), 'ac-')), 'relay.key')

  async function serve(listen: string): Promise<{ child: ChildProcess, address: string }> {
    const child = spawn(COMMAND!, ['serve', '--listen', listen, '--json', '--key', key], { stdio: ['ignore', 'pipe', 'ignore'] })
    children.push(child)
    const [line] = await once(createInterface({ input: child.stdout! }), 'line') as [string]
    return { child, address: (JSON.parse(line) as { addresses: string[] }).addresses[0] }
  }

  it('delivers reliable messages once, and joins again', async () => {
    const first = await serve('127.0.0.1:0')
    const port = first.address.split(':').at(-1)!
    const [a, b] = [await node({ relays: first.address }), await node({ relays: first.address })]
    const name = room()
    await b.client.join(name)
    const send = (i: number): Promise<unknown> => a.client.sendReliable(b.client.identity.publicKey, Buffer.from(String(i)))
    const outcomes = [...Array(50).keys()].map(send)
    await new Promise(resolve => setTimeout(resolve, 10))
    first.child.kill('SIGKILL')
    await once(first.child, 'exit')
    for (let i = 50; i < 60; i++) outcomes.push(send(i))
    const epoch = a.client.epoch!
    const again = Promise.all([once(a.client, 'connected'), once(b.client, 'joined')])
    const second = await serve(`127.0.0.1:${port}`)
    assert.equal(second.address, first.address)
    await again
    assert.ok(!a.client.epoch!.equals(epoch))
    assert.deepEqual(new Set(await Promise.all(outcomes)), new Set(['delivered']))
    assert.deepEqual(texts(b.got), [...Array(60).keys()].map(String))
    assert.equal((await a.client.publish(name, Buffer.from('back'))).kind, 'accepted')
    await until(() => b.got.length === 61, 'the broadcast after the restart')
    await Promise.all([a.client.close(), b.client.close()])
    second.child.kill('SIGKILL')
  })
})
