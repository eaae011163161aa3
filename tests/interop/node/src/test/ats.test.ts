// vectors/ats.json of the specification.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { Group, judgeAll, Scheduler } from '../ats.js'

type Answer = string | { retry_after_ns: string }
interface Case {
  name: string
  groups: Record<string, { max_residence_ns: string | null }>
  schedulers: Record<string, { cir_bytes_per_s: string, cbs_bytes: string, stall_ns: string, group: string }>
  events: Array<
    | { through: string[], arrival_ns: string, sizes: string[], answers: Answer[] }
    | { set_rate: string, now_ns: string, cir_bytes_per_s: string, cbs_bytes: string }
  >
}

// Some times are above 2^53, so every integer is read as text.
const source = readFileSync(new URL('../../vectors/ats.json', import.meta.url), 'utf8')
const { cases } = JSON.parse(source.replace(/"[^"]*"|\d+/g, token => token.startsWith('"') ? token : `"${token}"`)) as { cases: Case[] }

describe('ATS', () => {
  for (const { name, groups, schedulers, events } of cases) {
    it(name, () => {
      const made = Object.fromEntries(Object.entries(groups).map(([g, { max_residence_ns: n }]) => [g, new Group(n === null ? null : BigInt(n))]))
      const named = Object.fromEntries(Object.entries(schedulers).map(([s, c]) =>
        [s, new Scheduler(BigInt(c.cir_bytes_per_s), BigInt(c.cbs_bytes), made[c.group], BigInt(c.stall_ns))]))
      for (const event of events) {
        if ('set_rate' in event) {
          named[event.set_rate].setRate(BigInt(event.now_ns), BigInt(event.cir_bytes_per_s), BigInt(event.cbs_bytes))
          continue
        }
        const answers = event.sizes.map((size): Answer => {
          const verdict = judgeAll(event.through.map(s => named[s]), BigInt(event.arrival_ns), BigInt(size))
          if (verdict.kind === 'too_large') return verdict.kind
          if (verdict.kind === 'discard') return { retry_after_ns: String(verdict.retryAfter) }
          verdict.commit()
          return String(verdict.at)
        })
        assert.deepEqual(answers, event.answers)
      }
    })
  }
})
