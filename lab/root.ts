// Where the repository and its cache are. Called by lab/lab.ts and cli/lab.ts, from the sources (vitest) as from the bundle in dist/.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { VmmError } from '../native/errno.ts';

/** The folder with our package.json. */
export function repoRoot(): string {
  // In the CommonJS bundle there is no import.meta.url.
  let dir = dirname(import.meta.url === undefined ? __filename : fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, 'package.json'))) {
    const up = dirname(dir);
    if (up === dir)
      throw new VmmError(
        'ELAB',
        'the lab needs the repository around it (no package.json found); run bin/ferry from a checkout',
      );
    dir = up;
  }
  return dir;
}

/** FERRY_CACHE, or out/cache in the repository. */
export function cacheRoot(): string {
  return process.env['FERRY_CACHE'] ?? join(repoRoot(), 'out/cache');
}
