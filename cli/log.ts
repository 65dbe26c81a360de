// The root logger: pino on stderr, loaded with the first line that is really written (it costs 20 ms of a start). Children are passed down.
// Guest bytes alone go to stdout, so everything else is on stderr.
import type { Logger } from 'pino';
import { VmmError } from '../native/errno.ts';
import type { Log } from '../vmm/api.ts';

const LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;
type Level = (typeof LEVELS)[number];

export function parseLevel(text: string | null): Level {
  const level = LEVELS.find((known) => known === (text ?? 'warn'));
  if (level === undefined) throw new VmmError('usage', `--log-level ${text}: one of ${LEVELS.join(', ')} is wanted`);
  return level;
}

export function createLog(level: Level): Log {
  let root: Logger | null = null;
  const open = async (): Promise<Logger> => {
    const { pino } = await import('pino');
    root ??= pino({ level, base: { pid: process.pid } }, pino.destination({ fd: 2, sync: true }));
    return root;
  };
  return child(level, open, () => root, {});
}

function child(level: Level, open: () => Promise<Logger>, ready: () => Logger | null, bindings: object): Log {
  const threshold = LEVELS.indexOf(level);
  const at = (name: Exclude<Level, 'silent'>) => {
    if (LEVELS.indexOf(name) < threshold) return () => {};
    return (fields: object, message: string) => {
      const logger = ready();
      if (logger !== null) logger[name]({ ...bindings, ...fields }, message);
      else void open().then((opened) => opened[name]({ ...bindings, ...fields }, message));
    };
  };
  return {
    trace: at('trace'),
    debug: at('debug'),
    info: at('info'),
    warn: at('warn'),
    error: at('error'),
    child: (more) => child(level, open, ready, { ...bindings, ...more }),
  };
}
