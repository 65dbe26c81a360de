// Where a stream goes: URIs, the socket file's mode and end, names, and the words of a refused connection.
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { connectPeer, listenForPeer, parseUri } from '../../../migration/transport/uri.ts';

let directory = '';
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'ferry-transport-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

describe('parseUri', () => {
  it.each([
    ['tcp:10.0.0.1:4444', { kind: 'tcp', host: '10.0.0.1', port: 4444 }],
    ['tcp:[::1]:0', { kind: 'tcp', host: '::1', port: 0 }],
    ['tcp::4444', { kind: 'tcp', host: '', port: 4444 }],
    ['unix:/run/a:b', { kind: 'unix', path: '/run/a:b' }],
    ['fd:7', { kind: 'fd', fd: 7 }],
  ])('%s', (text, uri) => expect(parseUri(text)).toEqual(uri));
  it.each(['', 'tcp:', 'tcp:host', 'tcp:host:99999', 'tcp:::1:5', 'unix:', 'fd:x', 'fd:-1', 'exec:cat', 'http://x'])(
    'refuses %j',
    (text) => {
      expect(() => parseUri(text)).toThrow(/write tcp:HOST:PORT, unix:PATH or fd:NUMBER/);
    },
  );
});

describe('a stream over a socket', () => {
  it.each(['tcp:127.0.0.1:0', 'tcp:localhost:0', 'tcp:[::1]:0', 'unix'])('%s: bytes go both ways', async (kind) => {
    const listener = await listenForPeer(kind === 'unix' ? `unix:${join(directory, 's')}` : kind);
    const accepted = listener.accept();
    const source = await connectPeer(listener.uri);
    const destination = await accepted;
    await source.write(new Uint8Array([1, 2, 3]));
    expect([...(await destination.read(3))]).toEqual([1, 2, 3]);
    await destination.write(new Uint8Array([4]));
    expect([...(await source.read(1))]).toEqual([4]);
    source.abort();
    await expect(destination.read(1)).rejects.toThrow();
    destination.abort();
    listener.close();
  });

  it('a UNIX socket is 0600 and goes with its listener; a stale one is replaced; a live one and a file are refused', async () => {
    const path = join(directory, 's');
    const first = await listenForPeer(`unix:${path}`);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    await expect(listenForPeer(`unix:${path}`)).rejects.toThrow(/another process listens/);
    first.close();
    expect(existsSync(path)).toBe(false);

    const dead = createServer();
    await new Promise<void>((resolve) => dead.listen(join(directory, 'x'), resolve));
    const { renameSync } = await import('node:fs');
    renameSync(join(directory, 'x'), path);
    await new Promise((resolve) => dead.close(resolve));
    const second = await listenForPeer(`unix:${path}`);
    second.close();

    writeFileSync(path, 'precious');
    await expect(listenForPeer(`unix:${path}`)).rejects.toThrow(/no socket/);
    expect(existsSync(path)).toBe(true);
  });

  it('close() ends a listener that waits for a peer', async () => {
    const listener = await listenForPeer('tcp:127.0.0.1:0');
    const waiting = listener.accept();
    listener.close();
    await expect(waiting).rejects.toThrow();
  });

  it('a refused connection says so in the words of QEMU', async () => {
    const listener = await listenForPeer('tcp:127.0.0.1:0');
    listener.close();
    await expect(connectPeer(listener.uri)).rejects.toThrow(
      /^Failed to connect to '127.0.0.1:\d+': Connection refused$/,
    );
    await expect(connectPeer(`unix:${join(directory, 'none')}`)).rejects.toThrow(/No such file or directory$/);
    await expect(connectPeer('tcp:no-such-host.invalid:1')).rejects.toThrow(/Failed to resolve 'no-such-host.invalid'/);
  });
});
