// unix:PATH. The listening side makes the socket 0600 and takes it away again; a stale one is replaced, a live one and any other file are
// refused. Called by uri.ts.
import { lstatSync, unlinkSync } from 'node:fs';
import { type Channel, kvmNode, type SocketAddress } from '../../native/addon.ts';
import { SysError, VmmError } from '../../native/errno.ts';
import { describeFailure, listenerOver } from './tcp.ts';
import type { PeerListener } from './uri.ts';

const CONNECT_MS = 10_000;

function addressOf(path: string): SocketAddress {
  return { family: 'unix', host: '', port: 0, path };
}

export async function connectUnix(path: string): Promise<Channel> {
  try {
    return kvmNode().channel(await kvmNode().connect(addressOf(path), CONNECT_MS));
  } catch (cause) {
    throw new VmmError('connect', `Failed to connect to '${path}': ${describeFailure(cause)}`, { cause, exitCode: 1 });
  }
}

export async function listenUnix(path: string): Promise<PeerListener> {
  await removeStale(path);
  // The mask counts from the first moment on; a chmod afterwards would leave a gap.
  const mask = process.umask(0o177);
  try {
    return listenerOver(kvmNode().listen(addressOf(path)), `unix:${path}`);
  } catch (cause) {
    throw new VmmError('listen', `Failed to listen on '${path}': ${describeFailure(cause)}`, { cause });
  } finally {
    process.umask(mask);
  }
}

async function removeStale(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw new VmmError('listen', `'${path}' is there already and is no socket; give another path`);
  try {
    kvmNode().closeFd(await kvmNode().connect(addressOf(path), CONNECT_MS));
  } catch (error) {
    if (error instanceof SysError && error.code === 'ECONNREFUSED') {
      unlinkSync(path);
      return;
    }
    throw new VmmError('listen', `'${path}' cannot be used: ${describeFailure(error)}`, { cause: error });
  }
  throw new VmmError('listen', `another process listens on '${path}'; end it or give another path`);
}
