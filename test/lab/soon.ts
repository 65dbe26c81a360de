// A promise that is waited for no longer than it may take. Used by lab tests.
import { MOVE_LIMIT_MS } from './pair.ts';

export async function soon<T>(what: string, work: Promise<T>, limitMs = MOVE_LIMIT_MS): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not come within ${limitMs / 1000} s`)), limitMs);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
