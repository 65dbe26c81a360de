// Where a migration goes to or comes from: tcp:HOST:PORT, unix:PATH, fd:N, as QEMU writes them. Parses, and hands over to the file of that
// kind. Called by cli through control's MigrationDoor. No handshake: the first bytes are the stream (qemu-compat A5).
import { type Channel, kvmNode } from '../../native/addon.ts';
import { VmmError } from '../../native/errno.ts';
import { connectTcp, listenTcp } from './tcp.ts';
import { connectUnix, listenUnix } from './unix.ts';

export type MigrationUri =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'fd'; readonly fd: number };

export interface PeerListener {
  /** The URI that a source can use, with the port that was chosen. */
  readonly uri: string;
  accept(): Promise<Channel>;
  close(): void;
}

export function parseUri(text: string): MigrationUri {
  const colon = text.indexOf(':');
  const rest = text.slice(colon + 1);
  switch (text.slice(0, colon)) {
    case 'tcp': {
      const match = /^(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:[\]]*)):(\d{1,5})$/.exec(rest);
      if (match === null || Number(match[3]) > 65535) return refuse(text);
      return { kind: 'tcp', host: match[1] ?? match[2]!, port: Number(match[3]) };
    }
    case 'unix':
      return rest === '' ? refuse(text) : { kind: 'unix', path: rest };
    case 'fd':
      return /^\d{1,7}$/.test(rest) ? { kind: 'fd', fd: Number(rest) } : refuse(text);
    default:
      return refuse(text);
  }
}

function refuse(text: string): never {
  throw new VmmError(
    'uri',
    `${JSON.stringify(text)} is no place to migrate to; write tcp:HOST:PORT, unix:PATH or fd:NUMBER`,
  );
}

/** The source's side. */
export async function connectPeer(text: string): Promise<Channel> {
  const uri = parseUri(text);
  switch (uri.kind) {
    case 'tcp':
      return connectTcp(uri.host, uri.port);
    case 'unix':
      return connectUnix(uri.path);
    case 'fd':
      return kvmNode().channel(uri.fd);
  }
}

/** The destination's side. */
export async function listenForPeer(text: string): Promise<PeerListener> {
  const uri = parseUri(text);
  switch (uri.kind) {
    case 'tcp':
      return listenTcp(uri.host, uri.port);
    case 'unix':
      return listenUnix(uri.path);
    case 'fd':
      return { uri: text, accept: async () => kvmNode().channel(uri.fd), close: () => undefined };
  }
}
