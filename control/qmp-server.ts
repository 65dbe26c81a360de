// QMP on a UNIX socket: mode 0600, removed at close, a stale one replaced, a live one refused. Several clients at once, unlike QEMU's: there
// is one socket a guest, and `ferry status` and a migrate_cancel must get through while `ferry migrate` follows. Made by cli/host-session.ts.
import { chmodSync, lstatSync, unlinkSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { VmmError } from '../native/errno.ts';
import { qmpCommands } from './commands/table.ts';
import { QmpSession } from './qmp-session.ts';
import type { VmSession } from './vm-session.ts';

/** 'unix:/run/g1.sock' -> '/run/g1.sock'. Throws VmmError. */
export function controlPath(uri: string): string {
  if (!uri.startsWith('unix:') || uri.length === 5) {
    throw new VmmError('control', `--control ${uri}: only unix:PATH is known, for example unix:/run/guest.sock`);
  }
  const path = uri.slice(5).replace(/,.*$/, '');
  if (Buffer.byteLength(path) > 107) {
    throw new VmmError('control', `--control ${path}: a UNIX socket's path has at most 107 bytes; take a shorter one`);
  }
  return path;
}

export class QmpServer {
  readonly #vm: VmSession;
  readonly #path: string;
  readonly #server: Server;
  readonly #clients = new Map<Socket, QmpSession>();

  private constructor(vm: VmSession, path: string, server: Server) {
    this.#vm = vm;
    this.#path = path;
    this.#server = server;
    server.on('connection', (socket) => this.#connected(socket));
  }

  static async listen(vm: VmSession, uri: string): Promise<QmpServer> {
    const path = controlPath(uri);
    await removeStale(path);
    const server = createServer();
    // The socket is never reachable by others, not even for the moment between bind and chmod.
    const mask = process.umask(0o177);
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(path, resolve);
      });
      chmodSync(path, 0o600);
    } catch (error) {
      throw new VmmError(
        'control',
        `cannot listen at ${path}: ${(error as Error).message}; choose a path you may write to`,
        {
          cause: error,
        },
      );
    } finally {
      process.umask(mask);
    }
    return new QmpServer(vm, path, server);
  }

  get hasClient(): boolean {
    return this.#clients.size > 0;
  }

  #connected(socket: Socket): void {
    const session = new QmpSession(this.#vm, qmpCommands, (line) => socket.writable && socket.write(line));
    const events = this.#vm.events.listen((event) => session.event(event));
    this.#clients.set(socket, session);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      events.remove();
      this.#clients.delete(socket);
    });
    session.greet();
    socket.on('data', (bytes) => session.push(bytes));
  }

  /** Answers what was asked, then hangs up and removes the socket. */
  async close(): Promise<void> {
    this.#server.close();
    await Promise.all([...this.#clients].map(([socket, session]) => hangUp(socket, session)));
    unlinkQuietly(this.#path);
  }
}

async function hangUp(socket: Socket, session: QmpSession): Promise<void> {
  await Promise.race([session.idle(), new Promise((resolve) => setTimeout(resolve, 1000).unref())]);
  await new Promise<void>((resolve) => {
    socket.end(resolve);
    setTimeout(resolve, 500).unref();
  });
  socket.destroy();
}

async function removeStale(path: string): Promise<void> {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return;
  if (!stat.isSocket()) throw new VmmError('control', `${path} exists and is no socket: choose another --control path`);
  if (await answers(path)) {
    throw new VmmError('control', `${path} is in use by another process: choose another --control path`);
  }
  unlinkQuietly(path);
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Gone already: which is what was wanted.
  }
}
