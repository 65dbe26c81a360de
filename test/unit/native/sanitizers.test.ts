// The native code under AddressSanitizer + UBSan and under ThreadSanitizer: its unit tests and the vCPU tests run with an instrumented
// addon, and no report may name our code. First, that a sanitizer in this set-up does see a fault: a seeded one is found.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

const SEEDED = `
#include <node_api.h>
#include <pthread.h>
#include <stdlib.h>
static int shared;
static void *bump(void *) { shared++; return nullptr; }
static napi_value Overflow(napi_env, napi_callback_info) {
  volatile char *bytes = static_cast<char *>(malloc(8));
  bytes[8] = 1;
  free(const_cast<char *>(bytes));
  return nullptr;
}
static napi_value Race(napi_env, napi_callback_info) {
  pthread_t a, b;
  pthread_create(&a, nullptr, bump, nullptr);
  pthread_create(&b, nullptr, bump, nullptr);
  pthread_join(a, nullptr);
  pthread_join(b, nullptr);
  return nullptr;
}
NAPI_MODULE_INIT() {
  napi_value f;
  napi_create_function(env, nullptr, 0, Overflow, nullptr, &f);
  napi_set_named_property(env, exports, "overflow", f);
  napi_create_function(env, nullptr, 0, Race, nullptr, &f);
  napi_set_named_property(env, exports, "race", f);
  return exports;
}
`;

/** Whether this machine has the sanitizer's runtime; a machine without it skips, and says so. */
function runtime(name: string): boolean {
  return existsSync(execFileSync('gcc', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim());
}

/** What the sanitizer says when `call` of the seeded addon runs. */
function seeded(variant: string, call: string): string {
  const folder = mkdtempSync(join(process.cwd(), `build-${variant}-seeded-`));
  try {
    const { flags, env } = JSON.parse(
      execFileSync('node', ['scripts/sanitize.mjs', variant, '--env'], { encoding: 'utf8' }),
    ) as { flags: string[]; env: Record<string, string> };
    writeFileSync(join(folder, 'seeded.cc'), SEEDED);
    const addon = join(folder, 'seeded.node');
    const build = ['-shared', '-fPIC', '-g', '-I/usr/include/node', ...flags, join(folder, 'seeded.cc'), '-o', addon];
    execFileSync('g++', build);
    const options = Object.fromEntries(
      Object.entries(env).map(([key, value]) => [key, value.replace(/log_path=[^:]*/, `log_path=${folder}/report`)]),
    );
    spawnSync(process.execPath, ['-e', `require('${addon}').${call}()`], { env: { ...process.env, ...options } });
    const reports = readdirSync(folder).filter((file) => file.startsWith('report'));
    return reports.map((file) => readFileSync(join(folder, file), 'utf8')).join('');
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe.each([
  ['asan', 'libasan.so', 'overflow', 'heap-buffer-overflow'],
  ['tsan', 'libtsan.so', 'race', 'data race'],
])('%s', (variant, library, call, report) => {
  if (!runtime(library)) console.warn(`skipped: ${library} is not installed (it comes with g++)`);
  it.skipIf(!runtime(library))(
    'finds a seeded fault',
    () => {
      expect(seeded(variant, call)).toContain(report);
    },
    60_000,
  );

  it.skipIf(!runtime(library))(
    'finds nothing in ours',
    () => {
      const run = spawnSync('node', ['scripts/sanitize.mjs', variant], { encoding: 'utf8' });
      expect(run.status, run.stdout + run.stderr).toBe(0);
    },
    600_000,
  );
});
