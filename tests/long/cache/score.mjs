// node score.mjs RESULTS counts|failures: how many required and optimal cases of the suite passed, and which did not.
import fs from 'fs'
import suites from './tests/index.mjs'

const results = JSON.parse(fs.readFileSync(process.argv[2]))
const counts = { required: [0, 0], optimal: [0, 0], check: [0, 0] }
const failed = []
for (const suite of suites) {
  for (const test of suite.tests.filter(test => test.browser_only !== true)) {
    const kind = test.kind || 'required'
    counts[kind][1]++
    if (results[test.id] === true) counts[kind][0]++
    else if (kind !== 'check') failed.push(`${kind} ${test.id}: ${[].concat(results[test.id] || 'no result').join(': ')}`)
  }
}
if (process.argv[3] === 'failures') failed.forEach(line => console.log(line))
const of = kind => `${counts[kind][0]} of ${counts[kind][1]}`
console.log(`required ${of('required')}, optimal ${of('optimal')} (and behaves so in ${of('check')} cases that judge nothing)`)
