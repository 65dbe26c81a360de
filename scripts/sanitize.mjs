// Builds the addon under a sanitizer into build-asan/ or build-tsan/ (objects cached by content) and runs the native tests with it.
// Usage: node scripts/sanitize.mjs asan|tsan [TEST FILES...]       asan is AddressSanitizer and UBSan together.
//        node scripts/sanitize.mjs asan|tsan --env                 the environment in which an instrumented addon loads, as JSON
// Node itself is not instrumented: the runtime is preloaded, and a report is found by its log file, whatever a worker's exit code says.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = resolve(fileURLToPath(import.meta.url), '../..');
const VARIANTS = {
  asan: {
    // Without -O1 it compiles in two thirds of the time, and what it looks for is there all the same.
    optimize: '-O0',
    vitest: [],
    flags: ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'],
    runtime: 'libasan.so',
    without: null,
    options: (log) => ({
      // Leaks are not looked for: Node does not free what lives until it ends, and a leak check cannot run in a program that is traced.
      ASAN_OPTIONS: `detect_leaks=0:log_path=${log}`,
      UBSAN_OPTIONS: `print_stacktrace=1:log_path=${log}`,
    }),
  },
  tsan: {
    optimize: '-O1',
    // One process for all files: Node takes seconds to start below this runtime, and to load vitest.
    vitest: ['--no-isolate'],
    flags: ['-fsanitize=thread'],
    runtime: 'libtsan.so',
    // What one thread does alone, and what is about programs outside.
    without: /\/(page-bitmap|dirty-ring|channel-pieces-door|guest-ram|tracer)/,
    options: (log) => ({ TSAN_OPTIONS: `log_path=${log}:exitcode=0` }),
  },
};
/** What has threads, memory or fds in C++. Tests that only compare tables or start compilers would be slow for nothing. */
const TESTS = [
  ...readdirSync(join(ROOT, 'test/unit/native'))
    .filter((file) => /^(guest-ram|page-bitmap|dirty-ring|fd-|ioctl|channel|socket|tracer).*\.test\.ts$/.test(file))
    .map((file) => `test/unit/native/${file}`),
  'test/kvm/native-fast-file.test.ts',
  'test/kvm/native-vcpu-loop.test.ts',
  'test/kvm/native-vcpu-pause.test.ts',
];

/** Of TESTS, what this variant can find something in. */
function testsOf({ without }) {
  return TESTS.filter((file) => without === null || !without.test(file));
}

async function compile(variant, folder) {
  const sources = join(ROOT, 'native/src');
  const include = execFileSync('node', ['-p', "require('node-addon-api').include_dir"], {
    cwd: ROOT,
    encoding: 'utf8',
  }).trim();
  const flags = [
    '-std=c++17',
    variant.optimize,
    '-g1', // lines and functions: all that a report shows
    '-fPIC',
    '-pthread',
    '-fno-exceptions',
    '-fno-rtti',
    '-fno-omit-frame-pointer',
  ];
  flags.push('-DNAPI_VERSION=8', '-DNODE_ADDON_API_DISABLE_DEPRECATED', '-DNODE_ADDON_API_DISABLE_CPP_EXCEPTIONS');
  flags.push('-DNODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS');
  flags.push('-DBUILDING_NODE_EXTENSION', '-I/usr/include/node', `-I${resolve(ROOT, include)}`, ...variant.flags);
  const files = readdirSync(sources);
  const headers = createHash('sha256').update(flags.join(' '));
  for (const file of files.filter((name) => name.endsWith('.h'))) headers.update(readFileSync(join(sources, file)));
  const shared = headers.digest('hex');
  const jobs = files
    .filter((name) => name.endsWith('.cc'))
    .map((name) => {
      const key = createHash('sha256')
        .update(shared)
        .update(readFileSync(join(sources, name)))
        .digest('hex')
        .slice(0, 16);
      return { source: join(sources, name), object: join(folder, `${name}.${key}.o`) };
    });
  const missing = jobs.filter((job) => !existsSync(job.object));
  const worker = async () => {
    for (let job = missing.pop(); job !== undefined; job = missing.pop()) {
      await run('g++', [...flags, '-c', job.source, '-o', job.object]);
    }
  };
  await Promise.all(Array.from({ length: Math.min(availableParallelism(), 4) }, worker));
  const addon = join(folder, 'kvm_node.node');
  await run('g++', ['-shared', '-pthread', ...variant.flags, ...jobs.map((job) => job.object), '-o', addon]);
  const kept = new Set(jobs.map((job) => job.object));
  for (const file of readdirSync(folder))
    if (file.endsWith('.o') && !kept.has(join(folder, file))) rmSync(join(folder, file));
  return addon;
}

function run(command, args) {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
    child.once('exit', (code) =>
      code === 0 ? done() : fail(new Error(`${command} ${args.at(-1)}: exit code ${code}`)),
    );
  });
}

function runtimeEnv(variant, folder) {
  const runtime = execFileSync('gcc', [`-print-file-name=${variant.runtime}`], { encoding: 'utf8' }).trim();
  return { LD_PRELOAD: resolve(runtime), ...variant.options(join(folder, 'report')) };
}

function test(variant, folder, addon, files) {
  const reports = () => readdirSync(folder).filter((file) => file.startsWith('report.'));
  for (const file of reports()) rmSync(join(folder, file));
  // FERRY_TEST_SMALL: tests that move tens of MiB, or go round to be sure of an order of events, do less of it.
  const env = { ...process.env, FERRY_ADDON: addon, FERRY_TEST_SMALL: '1', ...runtimeEnv(variant, folder) };
  delete env.NODE_EXTRA_CA_CERTS;
  for (const name of Object.keys(env)) if (name.startsWith('VITEST')) delete env[name];
  const vitest = join(ROOT, 'node_modules/vitest/vitest.mjs');
  const args = [
    vitest,
    'run',
    ...variant.vitest,
    '--project',
    'unit',
    '--project',
    'kvm',
    '--no-file-parallelism',
    ...files,
  ];
  const { status } = spawnSync(process.execPath, args, { cwd: ROOT, env, stdio: 'inherit' });
  const found = reports().flatMap((file) => ours(readFileSync(join(folder, file), 'utf8')));
  for (const report of found) console.error(report);
  if (found.length > 0) console.error(`sanitize: ${found.length} report(s) name our code`);
  return status === 0 && found.length === 0;
}

const ACCESS = /^\s*(?:Previous )?(?:atomic )?(?:read|write) of size/i;
const FRAME = /^\s*#\d+ /;
/** Frames of the sanitizer's runtime and of the standard library do work for whoever called them. */
const BORROWED = /libtsan|\/c\+\+\/|libstdc\+\+|libc\.so/;

/**
 * Whether a report is about our code. ThreadSanitizer also sees what Node's and vitest's own binaries do, without knowing their locks, and
 * such a race may well have happened below a call of ours: a data race is ours when we made one of the two accesses.
 */
function isOurs(report) {
  if (!report.includes('WARNING: ThreadSanitizer: data race')) return report.includes('native/src/');
  return report
    .split(/\n\s*\n/)
    .map((paragraph) => paragraph.split('\n').filter((line) => ACCESS.test(line) || FRAME.test(line)))
    .filter((lines) => ACCESS.test(lines[0] ?? ''))
    .some(
      (lines) =>
        lines
          .slice(1)
          .find((frame) => !BORROWED.test(frame))
          ?.includes('native/src/') === true,
    );
}

function ours(text) {
  return text.split(/^={10,}$/m).filter(isOurs);
}

const [name, ...rest] = process.argv.slice(2);
const variant = VARIANTS[name];
if (variant === undefined) {
  console.error('usage: node scripts/sanitize.mjs asan|tsan [--env | TEST FILES...]');
  process.exit(2);
}
const folder = join(ROOT, `build-${name}`);
mkdirSync(folder, { recursive: true });
if (rest.includes('--env')) {
  console.log(JSON.stringify({ flags: variant.flags, env: runtimeEnv(variant, folder) }));
} else {
  const addon = await compile(variant, folder);
  process.exitCode = test(variant, folder, addon, rest.length > 0 ? rest : testsOf(variant)) ? 0 : 1;
}
