// Brings a fresh Debian 12 machine to where Ferry can be started or tested: Debian packages, npm modules, the addon, the bundle. Says what it
// does, does nothing that is done already. No dependencies: it runs before npm has installed any. Used by start.mjs, test.mjs, bench.mjs.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');

// An extra CA file costs 28 ms at every start of node (measured); nothing here needs it but npm, which has its own setting.
const { NODE_EXTRA_CA_CERTS: _dropped, ...plainEnvironment } = process.env;
export const environment = plainEnvironment;

/** What the build needs, then what guests and lab hosts need. */
const PACKAGES = [
  'g++',
  'make',
  'python3',
  'qemu-system-x86',
  'busybox-static',
  'cpio',
  'kmod',
  'xz-utils',
  'lz4',
  'zstd',
  'bc',
  'gcc',
  'libc6-dev',
  'libelf1',
  'acpica-tools',
];

export class SetupError extends Error {}

export function say(text) {
  process.stderr.write(`ferry setup: ${text}\n`);
}

export function run(command, args, options = {}) {
  const result = spawnSync(command, args, {
    cwd: root,
    env: environment,
    stdio: ['ignore', 'inherit', 'inherit'],
    ...options,
  });
  if (result.error) throw new SetupError(`${command} cannot be started: ${result.error.message}`);
  if (result.status !== 0) {
    const output = result.stderr ? `\n${result.stderr.toString().trim().split('\n').slice(-15).join('\n')}` : '';
    throw new SetupError(`${command} ${args.join(' ')} ended with ${result.status ?? result.signal}${output}`);
  }
  return result;
}

function missingPackages() {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own format, not a template
  const query = spawnSync('dpkg-query', ['-W', '-f', '${Package} ${db:Status-Status}\n', ...PACKAGES], {
    encoding: 'utf8',
  });
  if (query.error)
    throw new SetupError('dpkg-query is missing: Ferry is set up on Debian 12 (the program itself runs elsewhere too)');
  const installed = new Set(
    query.stdout
      .split('\n')
      .filter((line) => line.endsWith(' installed'))
      .map((line) => line.split(' ')[0].split(':')[0]),
  );
  return PACKAGES.filter((name) => !installed.has(name));
}

function installPackages() {
  const missing = missingPackages();
  if (missing.length === 0) return;
  if (process.getuid() !== 0) {
    throw new SetupError(
      `Debian packages are missing: run as root, or install them: apt-get install ${missing.join(' ')}`,
    );
  }
  say(`installing Debian packages: ${missing.join(' ')}`);
  const quiet = { stdio: ['ignore', 'ignore', 'pipe'], env: { ...environment, DEBIAN_FRONTEND: 'noninteractive' } };
  run('apt-get', ['update', '-q'], quiet);
  run('apt-get', ['install', '-y', '-q', '--no-install-recommends', ...missing], quiet);
}

function files(dir, pattern) {
  if (!existsSync(dir)) return [];
  return readdirSync(dir)
    .sort()
    .flatMap((name) => {
      const path = join(dir, name);
      if (statSync(path).isDirectory()) return files(path, pattern);
      return pattern.test(name) ? [path] : [];
    });
}

function hashOf(paths, ...words) {
  const hash = createHash('sha256');
  for (const word of words) hash.update(word);
  for (const path of paths) hash.update(path.slice(root.length)).update(readFileSync(path));
  return hash.digest('hex');
}

/** Runs `make` unless the stamp already holds `hash`. */
function once(stamp, hash, make) {
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === hash) return;
  make();
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, hash);
}

function installModules() {
  const lock = join(root, 'package-lock.json');
  once(join(root, 'node_modules', '.ferry-lock'), hashOf([lock], process.version), () => {
    say('installing npm modules (npm ci)');
    run('npm', ['ci', '--ignore-scripts', '--loglevel=error', '--no-audit', '--no-fund'], {
      env: process.env,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
  });
}

function buildAddon() {
  const sources = [...files(join(root, 'native/src'), /\.(cc|h)$/), join(root, 'binding.gyp')];
  once(join(root, 'build', '.ferry-hash'), hashOf(sources, process.version), () => {
    say('building the addon kvm_node');
    const headers = resolve(dirname(process.execPath), '..');
    const nodedir = existsSync(join(headers, 'include/node/node_api.h')) ? headers : '/usr';
    run('node_modules/.bin/node-gyp', ['rebuild', '--silent', `--nodedir=${nodedir}`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
  });
}

export function setup() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major !== 20 || minor < 20) throw new SetupError(`Node 20.20 is needed, this is ${process.versions.node}`);
  installPackages();
  installModules();
  buildAddon();
  run(process.execPath, ['scripts/bundle.mjs']);
}

/** Ends the process with the one line that helps. */
export function fail(error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`ferry setup: ${error.message}\n`);
  process.exit(2);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    setup();
    say('done');
  } catch (error) {
    fail(error);
  }
}
