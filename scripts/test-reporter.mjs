// A vitest reporter: one line a file, every failure in full, every skip with its reason; writes the counts to FERRY_TEST_COUNTS for test.mjs.
import { writeFileSync } from 'node:fs';

export default class FerryReporter {
  counts = { passed: 0, failed: 0, skipped: 0, failures: [] };

  onTestCaseResult(test) {
    const result = test.result();
    if (process.env.FERRY_TEST_TIMES)
      process.stdout.write(`  ${Math.round(test.diagnostic()?.duration ?? 0)} ms: ${test.fullName}\n`);
    if (result.state === 'skipped') {
      this.counts.skipped++;
      process.stdout.write(`  skipped: ${test.fullName}: ${result.note ?? 'no reason given (which is a defect)'}\n`);
      if (!result.note) this.fail(test.fullName, [new Error('skipped, and no reason given')]);
    } else if (result.state === 'passed') this.counts.passed++;
    else this.fail(test.fullName, result.errors ?? []);
  }

  /** What a test says of its own accord: why it is skipped, what it measured. */
  onUserConsoleLog(log) {
    process.stdout.write(log.content.replace(/^(?=.)/gm, '  | '));
  }

  onTestModuleEnd(module) {
    const states = [...module.children.allTests()].map((test) => test.result().state);
    const failed = states.filter((state) => state === 'failed').length;
    const ms = Math.round(module.diagnostic().duration);
    for (const error of module.errors()) this.fail(module.moduleId, [error]);
    for (const suite of module.children.allSuites())
      for (const error of suite.errors()) this.fail(suite.fullName, [error]);
    const name = module.moduleId.replace(`${process.cwd()}/`, '');
    process.stdout.write(
      `${failed > 0 || !module.ok() ? 'FAILED' : 'ok    '} ${name}: ${states.length} tests, ${ms} ms\n`,
    );
  }

  fail(name, errors) {
    this.counts.failed++;
    const first = (errors[0]?.message ?? 'no message').split('\n')[0];
    this.counts.failures.push(`${name}: ${first}`);
    process.stdout.write(`  FAILED: ${name}\n`);
    for (const error of errors) {
      process.stdout.write(`    ${(error.message ?? String(error)).replaceAll('\n', '\n    ')}\n`);
      if (error.diff) process.stdout.write(`    ${error.diff.replaceAll('\n', '\n    ')}\n`);
      for (const frame of (error.stacks ?? []).slice(0, 4))
        process.stdout.write(`      at ${frame.file}:${frame.line}\n`);
    }
  }

  onTestRunEnd(_modules, unhandled) {
    for (const error of unhandled) this.fail('unhandled error outside of a test', [error]);
    if (process.env.FERRY_TEST_COUNTS) writeFileSync(process.env.FERRY_TEST_COUNTS, JSON.stringify(this.counts));
  }
}
