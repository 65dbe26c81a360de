// The guest's serial console at the host: stdio (raw on a terminal, Ctrl-A x ends), a file, a UNIX socket, or nowhere. Guest bytes alone go to
// stdout. Whatever was changed (terminal mode, socket) is put back by close(), which every way out calls. Made by run.ts and receive.ts.
import { closeSync, openSync, unlinkSync, writeSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { VmmError } from '../native/errno.ts';
import type { SerialConfig } from '../vmm/api.ts';

const CTRL_A = 0x01;

export interface HostConsole {
  out(bytes: Uint8Array): void;
  /** Where bytes typed at the console go. */
  onInput(sink: (bytes: Uint8Array) => void): void;
  close(): void;
}

/** `end` is called for Ctrl-A x. */
export function openConsole(serial: SerialConfig, end: () => void): HostConsole {
  switch (serial.kind) {
    case 'stdio':
      return new StdioConsole(end);
    case 'file':
      return fileConsole(serial.path);
    case 'unix':
      return new SocketConsole(serial.path);
    case 'none':
      return { out: () => {}, onInput: () => {}, close: () => {} };
  }
}

class StdioConsole implements HostConsole {
  readonly #end: () => void;
  readonly #raw: boolean;
  #sink: (bytes: Uint8Array) => void = () => {};
  #escape = false;
  #closed = false;
  readonly #restore = () => this.close();

  constructor(end: () => void) {
    this.#end = end;
    this.#raw = process.stdin.isTTY === true;
    if (this.#raw) {
      process.stdin.setRawMode(true);
      process.on('exit', this.#restore);
    }
    process.stdin.on('data', this.#typed);
    process.stdin.on('error', () => {});
    process.stdout.on('error', () => {});
  }

  out(bytes: Uint8Array): void {
    process.stdout.write(bytes);
  }

  onInput(sink: (bytes: Uint8Array) => void): void {
    this.#sink = sink;
  }

  readonly #typed = (bytes: Buffer): void => {
    const kept: number[] = [];
    for (const byte of bytes) {
      if (!this.#raw) kept.push(byte);
      else if (this.#escape) this.#command(byte, kept);
      else if (byte === CTRL_A) this.#escape = true;
      else kept.push(byte);
    }
    if (kept.length > 0) this.#sink(Uint8Array.from(kept));
  };

  /** After Ctrl-A: x ends, Ctrl-A is itself, anything else is dropped. */
  #command(byte: number, kept: number[]): void {
    this.#escape = false;
    if (byte === 0x78) this.#end();
    else if (byte === CTRL_A) kept.push(byte);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    process.stdin.off('data', this.#typed);
    process.stdin.pause();
    process.stdin.unref?.();
    if (this.#raw) {
      process.stdin.setRawMode(false);
      process.off('exit', this.#restore);
    }
  }
}

function fileConsole(path: string): HostConsole {
  let fd: number;
  try {
    fd = openSync(path, 'w', 0o644);
  } catch (error) {
    throw new VmmError(
      'serial',
      `cannot write the console to ${path}: ${(error as Error).message}; choose another --serial`,
      {
        cause: error,
      },
    );
  }
  let open = true;
  return {
    out: (bytes) => {
      for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
    },
    onInput: () => {},
    close: () => {
      if (open) closeSync(fd);
      open = false;
    },
  };
}

class SocketConsole implements HostConsole {
  readonly #server: Server;
  readonly #clients = new Set<Socket>();
  readonly #path: string;
  #sink: (bytes: Uint8Array) => void = () => {};

  constructor(path: string) {
    this.#path = path;
    this.#server = createServer((socket) => {
      this.#clients.add(socket);
      socket.on('data', (bytes) => this.#sink(bytes));
      socket.on('close', () => this.#clients.delete(socket));
      socket.on('error', () => socket.destroy());
    });
    this.#server.on('error', (error) => process.stderr.write(`ferry: console socket ${path}: ${error.message}\n`));
    const mask = process.umask(0o177);
    this.#server.listen(path);
    process.umask(mask);
  }

  out(bytes: Uint8Array): void {
    for (const client of this.#clients) client.write(bytes);
  }
  onInput(sink: (bytes: Uint8Array) => void): void {
    this.#sink = sink;
  }
  close(): void {
    this.#server.close();
    for (const client of this.#clients) client.destroy();
    try {
      unlinkSync(this.#path);
    } catch {
      // The server removed it itself.
    }
  }
}
