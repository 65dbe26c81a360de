// Rules of the link between two lab hosts: bytes arrive as sent in both directions, and a cut is silent and can be mended.
import { createHash } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LabHost } from '../../lab/host.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { LINK_ADDRESS } from '../../lab/link.ts';
import { labUnavailable } from '../../lab/packages.ts';

const unavailable = labUnavailable();
if (unavailable !== null) console.log(`skipped: lab-link: ${unavailable}`);

const SIZE = 32 << 20;
const LIMIT_MS = 60_000; // measured: 1 s

/** Prints its port's readiness, then the SHA-256 of what one connection brings, and the milliseconds that it took. */
const RECEIVER = `
const hash = require('crypto').createHash('sha256'); let begun = 0;
require('net').createServer((s) => { s.on('data', (d) => { begun ||= Date.now(); hash.update(d); });
  s.on('end', () => { console.log(hash.digest('hex'), Date.now() - begun); process.exit(0); }); }).listen(5555, '0.0.0.0', () => console.log('listening'));`;
const SENDER = `
const s = require('net').connect(5555, process.argv[1]); const block = Buffer.alloc(1 << 20);
let left = ${SIZE}; let n = 0;
const more = () => { while (left > 0) { block.fill(n++ & 255); left -= block.length; if (!s.write(Buffer.from(block))) return s.once('drain', more); } s.end(); };
s.on('connect', more);`;

function sentHash(): string {
  const hash = createHash('sha256');
  for (let n = 0; n < SIZE >> 20; n++) hash.update(Buffer.alloc(1 << 20, n & 255));
  return hash.digest('hex');
}

/** Sends SIZE bytes from one host to the other; resolves with milliseconds at the receiver. */
async function transfer(from: LabHost, to: LabHost, address: string): Promise<number> {
  const receiver = to.spawn(['node', '-e', RECEIVER]);
  let said = '';
  const listening = new Promise<void>((resolve) => {
    receiver.stdout.on('data', (chunk: Buffer) => {
      said += chunk;
      if (said.includes('listening')) resolve();
    });
  });
  await listening;
  await from.run(['node', '-e', SENDER, address], { timeoutMs: LIMIT_MS });
  await receiver.done;
  const [hash, ms] = said.trim().split('\n').at(-1)!.split(' ');
  expect(hash).toBe(sentHash());
  return Number(ms);
}

describe.skipIf(unavailable !== null)('the link between two lab hosts', () => {
  let lab: Lab;
  beforeAll(async () => {
    const begun = Date.now();
    lab = await startLab({ hosts: 2, devices: [] });
    console.log(`two lab hosts after ${Date.now() - begun} ms`);
  });
  afterAll(() => lab?.close());

  it('carries bytes unchanged in both directions', async () => {
    const there = await transfer(lab.host(0), lab.host(1), LINK_ADDRESS[1]);
    const back = await transfer(lab.host(1), lab.host(0), 'host-a');
    const rate = (ms: number) => `${(SIZE / 1048.576 / ms).toFixed(0)} MB/s`;
    console.log(`link: a to b ${rate(there)}, b to a ${rate(back)}`);
  });

  it('is cut without a word to either end, and goes on where it was when mended', async () => {
    const [a, b] = [lab.host(0), lab.host(1)];
    const script = `require('net').createServer((s) => s.pipe(s)).listen(5556, '0.0.0.0', () => console.log('listening'))`;
    const echo = b.spawn(['node', '-e', script]);
    await new Promise((resolve) => echo.stdout.once('data', resolve));
    // Prints each answer; 'closed' would be a RST or FIN.
    const client = a.spawn([
      'node',
      '-e',
      `const s = require('net').connect(5556, '${LINK_ADDRESS[1]}'); s.on('data', (d) => console.log('got ' + d)); s.on('close', () => console.log('closed')); s.on('error', (e) => console.log(e.code)); process.stdin.on('data', (d) => s.write(String(d).trim()));`,
    ]);
    let said = '';
    client.stdout.on('data', (chunk: Buffer) => (said += chunk));
    const eventually = async (text: string) => {
      const limit = Date.now() + LIMIT_MS;
      while (!said.includes(text)) {
        if (Date.now() > limit) throw new Error(`no "${text}" in: ${said}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    };
    client.stdin.write('one');
    await eventually('got one');
    await lab.setLink(false);
    client.stdin.write('two');
    await new Promise((resolve) => setTimeout(resolve, 1500));
    expect(said).toBe('got one\n');
    await lab.setLink(true);
    await eventually('got two');
    client.disconnect();
    echo.disconnect();
  });
});
