// tcp:HOST:PORT. Names are resolved by node, addresses tried in the resolver's order; keep-alive and TCP_USER_TIMEOUT are the addon's.
// Called by uri.ts; connecting waits on a native thread.
import { lookup } from 'node:dns/promises';
import { type Channel, kvmNode, type SocketAddress } from '../../native/addon.ts';
import { SysError, VmmError } from '../../native/errno.ts';
import type { PeerListener } from './uri.ts';

const CONNECT_MS = 10_000;

async function resolve(host: string, port: number): Promise<SocketAddress[]> {
  try {
    const found = await lookup(host, { all: true, verbatim: true });
    return found.map(({ address, family }) => ({
      family: family === 6 ? 'inet6' : 'inet',
      host: address,
      port,
      path: '',
    }));
  } catch (cause) {
    throw new VmmError('resolve', `Failed to resolve '${host}': check the name, or write the address`, { cause });
  }
}

export async function connectTcp(host: string, port: number): Promise<Channel> {
  let failed: unknown = null;
  for (const address of await resolve(host === '' ? 'localhost' : host, port)) {
    try {
      return kvmNode().channel(await kvmNode().connect(address, CONNECT_MS));
    } catch (error) {
      failed = error;
    }
  }
  throw new VmmError('connect', `Failed to connect to '${host}:${port}': ${describeFailure(failed)}`, {
    cause: failed,
    exitCode: 1,
  });
}

/** `host` empty: every address, as QEMU takes it. */
export async function listenTcp(host: string, port: number): Promise<PeerListener> {
  const [address] =
    host === '' ? [{ family: 'inet', host: '0.0.0.0', port, path: '' } as const] : await resolve(host, port);
  let fd: number;
  try {
    fd = kvmNode().listen(address!);
  } catch (cause) {
    throw new VmmError('listen', `Failed to listen on '${host}:${port}': ${describeFailure(cause)}`, { cause });
  }
  const bound = kvmNode().localAddress(fd);
  const shown = bound.family === 'inet6' ? `[${bound.host}]` : bound.host;
  return listenerOver(fd, `tcp:${shown}:${bound.port}`);
}

/** One peer is taken; close() may come before, and then accept() rejects. */
export function listenerOver(fd: number, uri: string): PeerListener {
  let open = true;
  return {
    uri,
    accept: async () => kvmNode().channel(await kvmNode().accept(fd)),
    close: () => {
      if (open) kvmNode().closeListener(fd);
      open = false;
    },
  };
}

const WORDS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'Connection refused',
  ENOENT: 'No such file or directory',
  ETIMEDOUT: 'Connection timed out',
  EHOSTUNREACH: 'No route to host',
  ENETUNREACH: 'Network is unreachable',
  EADDRINUSE: 'Address already in use',
  EADDRNOTAVAIL: 'Cannot assign requested address',
  EACCES: 'Permission denied',
};

/** In the words that QEMU's users know. */
export function describeFailure(failed: unknown): string {
  if (failed instanceof SysError) return WORDS[failed.code] ?? failed.message;
  return failed instanceof Error ? failed.message : String(failed);
}
