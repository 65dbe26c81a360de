// Rules of the image cache: one builder, the others wait; a failed or killed build leaves nothing behind that looks complete; a pid that
// was given to another process is not taken for the old one.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { cached, contentName, processStart, processTag, stillRuns } from '../../../images/cache.ts';

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'ferry-cache-'));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

describe('the cache', () => {
  it('builds once for all who ask at the same time', async () => {
    let builds = 0;
    const build = async (dir: string) => {
      builds++;
      await sleep(50);
      writeFileSync(join(dir, 'made'), 'x');
    };
    const dirs = await Promise.all([1, 2, 3].map(() => cached(root, 'thing', build)));
    expect(builds).toBe(1);
    expect(new Set(dirs)).toEqual(new Set([join(root, 'thing')]));
    expect(readdirSync(root)).toEqual(['thing']);
  });

  it('keeps nothing of a build that failed, and lets the next one try', async () => {
    const failing = cached(root, 'thing', async (dir) => {
      writeFileSync(join(dir, 'half'), '');
      throw new Error('no space');
    });
    await expect(failing).rejects.toThrow('no space');
    expect(readdirSync(root)).toEqual([]);
    await cached(root, 'thing', async (dir) => writeFileSync(join(dir, 'whole'), ''));
    expect(readdirSync(join(root, 'thing'))).toEqual(['whole']);
  });

  it('takes over from a builder that died', async () => {
    writeFileSync(join(root, 'thing.lock'), `${process.pid} 1`);
    await cached(root, 'thing', async () => {});
    expect(existsSync(join(root, 'thing.lock'))).toBe(false);
  });

  it('names by the contents and the names of the files', async () => {
    const [a, b] = [join(root, 'a'), join(root, 'b')];
    writeFileSync(a, 'one');
    writeFileSync(b, 'one');
    const names = [await contentName([a], ''), await contentName([b], ''), await contentName([a], 'salt')];
    writeFileSync(a, 'two');
    names.push(await contentName([a], ''));
    expect(new Set(names).size).toBe(4);
    writeFileSync(a, readFileSync(b));
    expect(await contentName([a], '')).toBe(names[0]);
  });
});

describe('a process tag', () => {
  it('is of this very process, not of another with its pid', () => {
    expect(stillRuns(processTag())).toBe(true);
    expect(stillRuns(`${process.pid} 1`)).toBe(false);
    expect(stillRuns('')).toBe(false);
    expect(processStart(0)).toBeNull();
  });
});
