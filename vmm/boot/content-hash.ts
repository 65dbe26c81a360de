// The SHA-256 of a file, for kernel-cache.ts, which loads this only when a kernel is not known by its file's identity.
import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';

export async function contentHash(file: FileHandle): Promise<string> {
  const hash = createHash('sha256');
  const chunk = Buffer.allocUnsafe(2 ** 20);
  for (let at = 0; ; ) {
    const { bytesRead } = await file.read(chunk, 0, chunk.length, at);
    if (bytesRead === 0) return hash.digest('hex');
    hash.update(chunk.subarray(0, bytesRead));
    at += bytesRead;
  }
}
