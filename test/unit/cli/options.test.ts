// Rules: bad options are one line with the way to the help; help rows are made from the table that parses.
import { describe, expect, it } from 'vitest';
import { type OptionTable, optionHelp, parseOptions, wholeNumber } from '../../../cli/options.ts';
import { VmmError } from '../../../native/errno.ts';

const TABLE: OptionTable = {
  kernel: { kind: 'value', value: 'PATH', help: 'the kernel' },
  device: { kind: 'list', value: 'SPEC', help: 'a device\n(may be repeated)' },
  quiet: { kind: 'flag', value: '', help: 'say less', short: 'q' },
};

describe('parseOptions', () => {
  it('reads values, lists, flags and words', () => {
    const parsed = parseOptions('run', TABLE, ['--kernel', 'k', '--device', 'a,b=1', '--device=c', '-q', 'word']);
    expect(parsed.value('kernel')).toBe('k');
    expect(parsed.list('device')).toEqual(['a,b=1', 'c']);
    expect(parsed.flag('quiet')).toBe(true);
    expect(parsed.words).toEqual(['word']);
    expect(parseOptions('run', TABLE, []).value('kernel')).toBeNull();
  });

  it.each([[['--nope']], [['--kernel']], [['--quiet=1']]])('%j is refused in one line', (args) => {
    let caught: unknown;
    try {
      parseOptions('run', TABLE, args);
    } catch (error) {
      caught = error;
    }
    expect(caught).toBeInstanceOf(VmmError);
    expect((caught as VmmError).exitCode).toBe(2);
    expect((caught as VmmError).message).toMatch(/^ferry run: .*; see ferry run --help$/);
    expect((caught as VmmError).message).not.toContain('\n');
  });
});

describe('optionHelp', () => {
  it('names every option with its value and all its help lines', () => {
    const text = optionHelp(TABLE);
    for (const piece of ['--kernel PATH', '--device SPEC', '-q, --quiet', '(may be repeated)'])
      expect(text).toContain(piece);
  });
});

describe('wholeNumber', () => {
  it('takes numbers from min up and nothing else', () => {
    expect(wholeNumber('v', 'n', '5', 1)).toBe(5);
    expect(wholeNumber('v', 'n', null, 1)).toBeNull();
    for (const bad of ['0', '-1', '1.5', 'x', '', '1e3', '99999999999999999999']) {
      expect(() => wholeNumber('v', 'n', bad, 1), bad).toThrow(VmmError);
    }
  });
});
