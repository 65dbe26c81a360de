// Rules: a tick that is missing, doubled, out of order or earlier than the one before is counted, over all consoles together; a line cut
// in two by a hand-over is one line; counters are told apart by console; any error makes the verdict bad.
import { describe, expect, test } from 'vitest';
import { faultsOf, judge } from '../../../images/guest/verdict.ts';

const tick = (n: number, ms: number): string => `tick n=${n} t=${ms * 1_000_000}\r\n`;
const ticks = (from: number, to: number): string =>
  Array.from({ length: to - from + 1 }, (_, i) => tick(from + i, (from + i) * 50)).join('');
const counts = (word: string, memory: number, extra = ''): string =>
  `${word} n=1 memoryChecks=${memory} memoryErrors=0 memoryLaps=0 dmas=2 dmaChecks=${memory} dmaErrors=0 irqs=${memory} irqErrors=0 regChecks=${memory} regErrors=0 clockReads=5 clockBack=0${extra}\r\n`;

describe('verdict over the consoles of a moved guest', () => {
  test('a whole run over two consoles has no fault, also when a line is cut by the hand-over', () => {
    const source = `init mono=1 cpus=1\r\n${ticks(1, 5)}${counts('stat', 10)}${tick(6, 300).slice(0, 9)}`;
    const destination = `${tick(6, 300).slice(9)}${ticks(7, 9)}${counts('verdict ok=1', 25)}`;
    const verdict = judge([source, destination]);
    expect(verdict).toMatchObject({ ticks: 9, lostTicks: 0, memoryChecks: 25, maxGapMs: 50, ok: true });
    expect(verdict.consoles.map((c) => [c.ticks, c.memoryChecks])).toEqual([
      [5, 10],
      [4, 15],
    ]);
    expect(faultsOf(verdict, { edu: true })).toEqual([]);
    expect(faultsOf(verdict, { edu: false, bringup: true })).toEqual([
      'dmaBytes stayed 0 on console 1',
      'dmaBytes stayed 0 on console 2',
    ]);
    const moved = [
      source.replace('clockBack=0', 'clockBack=0 dmaBytes=7'),
      destination.replace(/clockBack=0/, 'clockBack=0 dmaBytes=9'),
    ];
    expect(judge(moved).consoles.map(({ dmaBytes }) => dmaBytes)).toEqual([7, 2]);
    expect(faultsOf(judge(moved), { edu: false, bringup: true })).toEqual([]);
    const serial = (bytes: number, errors: number) => `clockBack=0 serialBytes=${bytes} serialErrors=${errors}`;
    const idle = [source.replace('clockBack=0', serial(7, 0)), destination.replace('clockBack=0', serial(7, 1))];
    expect(faultsOf(judge(idle), { edu: false, mtty: true })).toEqual([
      'serialErrors is 1',
      'serialBytes stayed 0 on console 2',
    ]);
  });

  test.each([
    ['missing', [ticks(1, 5), ticks(8, 9)], 2],
    ['repeated', [ticks(1, 5), ticks(5, 9)], 1],
    ['out of order', [ticks(1, 5), tick(7, 350) + tick(6, 350) + tick(8, 400)], 2],
    ['missing from the start', [ticks(3, 5)], 2],
    ['time stamp back', [ticks(1, 3), tick(4, 120)], 1],
    ['cut off and lost', [ticks(1, 4) + tick(5, 250).slice(0, 9), ticks(6, 7)], 2],
  ])('%s ticks are counted', (_, consoles, lost) => {
    expect(judge(consoles).lostTicks).toBe(lost);
  });

  test('an error counter, an error verdict, no verdict, and idleness after the move are faults', () => {
    const good = ticks(1, 3) + counts('stat', 10);
    const after = ticks(4, 5);
    expect(
      faultsOf(judge([good, after + counts('verdict ok=1', 20).replace('dmaErrors=0', 'dmaErrors=3')]), { edu: true }),
    ).toEqual(['dmaErrors is 3']);
    expect(faultsOf(judge([good, after + counts('verdict ok=0', 20)]), { edu: true })).toEqual([
      'the workload found errors',
    ]);
    expect(faultsOf(judge([good, after + counts('stat', 20)]), { edu: true })).toEqual([
      'the workload gave no verdict',
    ]);
    expect(faultsOf(judge([good, after + counts('verdict ok=1', 10)]), { edu: true })).toEqual([
      'memoryChecks stayed 0 on console 2',
      'dmaChecks stayed 0 on console 2',
      'irqs stayed 0 on console 2',
      'regChecks stayed 0 on console 2',
    ]);
  });

  test('error lines are kept', () => {
    expect(judge(['error kind=dma page=3 word=0\n']).errors).toEqual(['error kind=dma page=3 word=0']);
  });
});
