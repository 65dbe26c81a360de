// Whether somebody listens on a UNIX socket. Its name is there from bind() on, but until listen() a connection is refused, and on a busy
// machine a QEMU may stand between the two for long. Called by lab.ts and host.ts before anything connects. unix(7), /proc/net/unix.
import { readFileSync } from 'node:fs';

/** __SO_ACCEPTCON in the Flags column. */
const LISTENING = '00010000';

export function isListening(path: string, table = readFileSync('/proc/net/unix', 'latin1')): boolean {
  return table.split('\n').some((line) => {
    const [, , , flags, , , , name] = line.trim().split(/ +/);
    return flags === LISTENING && name === path;
  });
}
