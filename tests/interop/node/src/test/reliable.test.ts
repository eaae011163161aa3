// reliable.md, unicast, over a carrier that loses, refuses and forgets.
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { decode, encode, type Value } from '../cbor.js'
import { type Carrier, parseControl, parseSegment, ReliableReceiver, ReliableSender } from '../reliable.js'

const A = Buffer.alloc(32, 0xa)
const B = Buffer.alloc(32, 0xb)

/** A sends to B; `pass` decides about each payload. */
class Pair {
  connected = true
  readonly got: string[] = []
  readonly wire: Array<{ content: number, value: Value }> = []
  sender: ReliableSender
  receiver: ReliableReceiver
  pass: (content: number, n: number) => 'pass' | 'lose' | number = () => 'pass'
  hold: Array<() => boolean> | null = null
  private n = 0

  constructor() {
    this.sender = new ReliableSender(this.carrier(B))
    this.receiver = new ReliableReceiver(this.carrier(A))
  }

  carrier(to: Buffer): Carrier {
    return {
      isConnected: () => this.connected,
      handOver: (_sender, _cls, _content, payload, take) => {
        const run = (): boolean => take() && this.got.push(payload.toString()) > 0
        if (this.hold === null) run()
        else this.hold.push(run)
      },
      carry: (_peer, cls, content, _size, build, sent, settle) => {
        setImmediate(() => {
          const payload = this.connected ? build() : null
          if (payload === null) return
          sent()
          this.wire.push({ content, value: decode(payload) })
          const fate = this.pass(content, this.n++)
          if (typeof fate === 'number') return settle({ kind: 'refused', code: fate, retryAfterMs: 0 })
          settle({ kind: 'accepted' })
          if (fate === 'lose') return
          if (content === 1) return this.receiver.onSegment(A, cls, parseSegment(payload)!)
          const control = parseControl(payload)!
          if (control.kind === 'mark') this.receiver.onMark(A, control)
          else if (to === A && control.kind === 'ack') this.sender.onAck(B, control)
          else if (to === A && control.kind === 'refusal') this.sender.onRefusal(B, control)
        })
      },
    }
  }

  send(n: number, expiresMs = 20_000): Promise<unknown[]> {
    return Promise.all([...Array(n).keys()].map(i => this.sender.send(B, 1, 0, Buffer.from(String(i)), expiresMs)))
  }

  stop(): void {
    this.sender.stop()
    this.receiver.stop()
  }
}

const numbers = (n: number): string[] => [...Array(n).keys()].map(String)

describe('reliable unicast', () => {
  it('delivers in order and once while a third of everything is lost', async () => {
    const pair = new Pair()
    pair.pass = (_content, n) => n % 3 === 1 ? 'lose' : 'pass'
    assert.deepEqual(new Set(await pair.send(60)), new Set(['delivered']))
    assert.deepEqual(pair.got, numbers(60))
    pair.stop()
  })

  it('waits after a refusal that may be retried, and ends with one that may not', async () => {
    const pair = new Pair()
    pair.pass = (_content, n) => n < 2 ? 33 : 'pass'
    assert.deepEqual(new Set(await pair.send(5)), new Set(['delivered']))
    assert.deepEqual(pair.got, numbers(5))
    pair.pass = content => content === 1 ? 34 : 'pass'
    assert.deepEqual(await pair.send(1), [{ refused: 'code 34' }])
    pair.pass = content => content === 1 ? 33 : 'pass'
    assert.deepEqual(await pair.send(1, 200), ['expired'])
    pair.stop()
    const silent = new Pair()
    silent.pass = content => content === 1 ? 'lose' : 'pass'
    assert.deepEqual(await silent.send(1, 200), ['unknown'])
    silent.stop()
  })

  it('tells what it holds, and sends all of it again to a receiver that began anew', async () => {
    const pair = new Pair()
    pair.hold = []
    const outcomes = pair.send(5)
    await new Promise(resolve => setTimeout(resolve, 300))
    const ack = pair.wire.filter(one => one.content === 2).at(-1)!.value as Value[]
    assert.deepEqual(ack.slice(3), [1, 1, [], [[1, 5]]])
    pair.receiver.stop()
    pair.hold = null
    pair.receiver = new ReliableReceiver(pair.carrier(A))
    assert.deepEqual(new Set(await outcomes), new Set(['delivered']))
    assert.deepEqual(pair.got, numbers(5))
    pair.stop()
  })

  it('goes on above what has expired, and hands nothing over too late', async () => {
    const pair = new Pair()
    pair.hold = []
    assert.deepEqual(await pair.send(2, 150), ['unknown', 'unknown'])
    const later = pair.sender.send(B, 1, 0, Buffer.from('later'), 5_000)
    await new Promise(resolve => setTimeout(resolve, 200))
    for (const run of pair.hold) run()
    pair.hold = null
    assert.equal(await later, 'delivered')
    assert.deepEqual(pair.got, ['later'])
    pair.stop()
  })

  it('answers a lower incarnation with a refusal, and forgets it for a greater one', async () => {
    const pair = new Pair()
    const segment = (incarnation: number, sequence: number, text: string): void =>
      pair.receiver.onSegment(A, 1, parseSegment(encode([Buffer.alloc(16, incarnation), sequence, sequence, 1_000, 0, Buffer.from(text)]))!)
    segment(2, 7, 'a')
    segment(2, 7, 'a')
    segment(1, 8, 'b')
    segment(3, 7, 'c')
    await new Promise(resolve => setTimeout(resolve, 20))
    assert.deepEqual(pair.got, ['a', 'c'])
    assert.ok(pair.wire.some(one => JSON.stringify((one.value as Value[]).slice(2)) === '[1,1]' && (one.value as Value[])[0] === 1))
    pair.stop()
  })

  it('ignores what does not match', () => {
    const id = Buffer.alloc(16)
    for (const bad of [[id, 1, 2, 1, 0, A], [id, 0, 0, 1, 0, A], [id, 1, 1, 0, 0, A], [id, 1, 1, 86_400_001, 0, A], [id, 1, 1, 1, 1, A], [id, 1, 1, 1, 0], [A, 1, 1, 1, 0, A]] as Value[]) {
      assert.equal(parseSegment(encode(bad)), null)
    }
    for (const bad of [[0, id, id, 1, 1, [[2, 1]], []], [0, id, id, 1, 1, [[1, 2], [3, 4]], []], [0, id, id, 7, 1, [], []], [1, id, 1], [2, null, id, []], [9]] as Value[]) {
      assert.equal(parseControl(encode(bad)), null)
    }
    assert.notEqual(parseControl(encode([0, id, id, 1, 1, [[1, 2], [4, 4]], []])), null)
  })
})
