// import() of a user's file, from the sources as from the bundle. Called by registry.ts (--plugin) and vfio/check/exerciser.ts (--exerciser).

/** Handed to the bundle by bin/ferry: a script that runs from kept bytecode has no import() of its own (node:vm). */
declare const importFile: ((url: string) => Promise<Record<string, unknown>>) | undefined;

export function importModule(url: string): Promise<Record<string, unknown>> {
  return typeof importFile === 'undefined' ? import(url) : importFile(url);
}
