// One QMP client: greeting, negotiation, one command after the other, its events. Made by qmp-server.ts for each connection.
// Protocol: QEMU docs/interop/qmp-spec; the words of errors are QEMU 7.2's.
import type { QmpEvent } from './events.ts';
import { JsonStream } from './json-stream.ts';
import { type Arguments, checkArguments, type QmpCommands, QmpError } from './qmp-schema.ts';
import type { VmSession } from './vm-session.ts';

/** We speak as the QEMU whose behaviour we were measured against. */
export const QEMU_VERSION = { micro: 22, minor: 2, major: 7 };
export const PACKAGE = 'ferry';

const REQUEST_MEMBERS = new Set(['execute', 'arguments', 'id', 'exec-oob', 'control']);

type Request = { readonly [name: string]: unknown };

export class QmpSession {
  readonly #vm: VmSession;
  readonly #commands: QmpCommands;
  readonly #send: (line: string) => void;
  readonly #stream = new JsonStream();
  #negotiated = false;
  #queue: Promise<void> = Promise.resolve();

  constructor(vm: VmSession, commands: QmpCommands, send: (line: string) => void) {
    this.#vm = vm;
    this.#commands = commands;
    this.#send = send;
  }

  greet(): void {
    this.#write({ QMP: { version: { qemu: QEMU_VERSION, package: PACKAGE }, capabilities: [] } });
  }

  /** Replies come in the order of the requests, whatever each takes. */
  push(bytes: Uint8Array): void {
    for (const item of this.#stream.push(bytes)) {
      this.#queue = this.#queue.then(async () => {
        if ('error' in item) this.#fail(new QmpError('GenericError', item.error), undefined);
        else await this.#answer(item.value);
      });
    }
  }

  /** Resolves when everything asked so far is answered. */
  idle(): Promise<void> {
    return this.#queue;
  }

  event(event: QmpEvent): void {
    if (this.#negotiated) this.#write(event);
  }

  #write(message: object): void {
    this.#send(`${JSON.stringify(message)}\r\n`);
  }

  async #answer(value: unknown): Promise<void> {
    const id = isObject(value) ? value['id'] : undefined;
    try {
      const request = this.#checkRequest(value);
      const result = await this.#execute(request);
      this.#write({ return: result ?? {}, ...(id === undefined ? {} : { id }) });
    } catch (error) {
      this.#fail(error, id);
    }
  }

  #fail(error: unknown, id: unknown): void {
    const qmp = error instanceof QmpError ? error : new QmpError('GenericError', messageOf(error));
    this.#write({ error: { class: qmp.errorClass, desc: qmp.message }, ...(id === undefined ? {} : { id }) });
  }

  #checkRequest(value: unknown): Request {
    if (!isObject(value)) throw new QmpError('GenericError', 'QMP input must be a JSON object');
    for (const name of Object.keys(value)) {
      if (!REQUEST_MEMBERS.has(name) || name === 'exec-oob') {
        throw new QmpError('GenericError', `QMP input member '${name}' is unexpected`);
      }
    }
    if (value['execute'] === undefined) throw new QmpError('GenericError', "QMP input lacks member 'execute'");
    if (typeof value['execute'] !== 'string') {
      throw new QmpError('GenericError', "QMP input member 'execute' must be a string");
    }
    if (value['arguments'] !== undefined && !isObject(value['arguments'])) {
      throw new QmpError('GenericError', "QMP input member 'arguments' must be an object");
    }
    return value;
  }

  #execute(request: Request): unknown {
    const name = request['execute'] as string;
    const args = (request['arguments'] ?? {}) as Arguments;
    if (name === 'qmp_capabilities') return this.#negotiate();
    if (!this.#negotiated) {
      throw new QmpError('CommandNotFound', "Expecting capabilities negotiation with 'qmp_capabilities'");
    }
    const command = Object.hasOwn(this.#commands, name) ? this.#commands[name] : undefined;
    if (command === undefined) throw new QmpError('CommandNotFound', `The command ${name} has not been found`);
    checkArguments(command.arguments, args);
    return command.run(this.#vm, args);
  }

  #negotiate(): object {
    if (this.#negotiated) {
      throw new QmpError('CommandNotFound', 'Capabilities negotiation is already complete, command ignored');
    }
    this.#negotiated = true;
    return {};
  }
}

function isObject(value: unknown): value is Request {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
