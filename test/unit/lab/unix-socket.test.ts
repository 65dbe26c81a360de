// Rule: a lab connects to a socket only when somebody listens there; a bound socket that does not listen yet refuses (seen on a busy machine).
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { isListening } from '../../../lab/unix-socket.ts';

it('sees a listener come and go', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'ferry-socket-'));
  const path = join(dir, 'a.sock');
  expect(isListening(path)).toBe(false);
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(path, resolve));
  expect(isListening(path)).toBe(true);
  expect(isListening(join(dir, 'a'))).toBe(false);
  await new Promise((resolve) => server.close(resolve));
  expect(isListening(path)).toBe(false);
  rmSync(dir, { recursive: true });
});

it('does not take a bound or a connected socket for a listening one', () => {
  const table = (flags: string, state: string) =>
    `Num       RefCount Protocol Flags    Type St Inode Path\n0000000000000000: 00000002 00000000 ${flags} 0001 ${state} 12345 /tmp/q.sock\n`;
  expect(isListening('/tmp/q.sock', table('00000000', '01'))).toBe(false);
  expect(isListening('/tmp/q.sock', table('00000000', '03'))).toBe(false);
  expect(isListening('/tmp/q.sock', table('00010000', '01'))).toBe(true);
});
