// Talking with a flat guest in a lab host over its console: what is typed, and what it then says. A guest that says "wrong" ends the wait.
import type { ConsoleLog } from '../../cli/demo-console.ts';
import { type Guest, MOVE_LIMIT_MS } from './pair.ts';

/** Waits for words that come after the first `from` characters. */
export async function said(guest: Guest, answer: RegExp, from: number): Promise<RegExpExecArray> {
  let found: RegExpExecArray | null = null;
  const look = ({ text }: ConsoleLog): boolean => {
    found = answer.exec(text.slice(from));
    return found !== null || /^wrong .*\r?\n/m.test(text.slice(from));
  };
  try {
    await guest.console.until(String(answer), look, MOVE_LIMIT_MS);
  } catch (error) {
    const { console, stderr } = guest;
    throw new Error(`${(error as Error).message}; its console: ${console.text.slice(-1500)}; stderr: ${stderr()}`, {
      cause: error,
    });
  }
  if (found === null) throw new Error(`the guest says: ${/^wrong .*/m.exec(guest.console.text)?.[0]}`);
  return found;
}

/** Types and waits for the answer. */
export function type(guest: Guest, text: string, answer: RegExp): Promise<RegExpExecArray> {
  const from = guest.console.text.length;
  guest.process.stdin.write(text);
  return said(guest, answer, from);
}
