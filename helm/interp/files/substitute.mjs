// Puts this installation's NEXT_PUBLIC_* into pages that were built with placeholders (__NEXT_PUBLIC_URL__), for Next.js
// bakes them in at build time. Copies <app>/.next to TARGET, which is then mounted over it: the image stays read-only.
import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { extname, join } from 'node:path';

const [source, target] = [process.env.SOURCE, process.env.TARGET];
const TEXT = new Set(['.js', '.mjs', '.cjs', '.json', '.html', '.rsc', '.body', '.meta', '.txt', '.css']);
const values = Object.entries(process.env).filter(([name]) => name.startsWith('NEXT_PUBLIC_'));

cpSync(source, target, { recursive: true });
const counts = new Map(values.map(([name]) => [name, 0]));
for (const entry of readdirSync(target, { recursive: true, withFileTypes: true })) {
  if (!entry.isFile() || !TEXT.has(extname(entry.name))) continue;
  const path = join(entry.parentPath ?? entry.path, entry.name);
  const before = readFileSync(path, 'utf8');
  let after = before;
  for (const [name, value] of values) {
    const parts = after.split(`__${name}__`);
    counts.set(name, counts.get(name) + parts.length - 1);
    // The placeholder stands inside a string of JavaScript or JSON: what would end that string is escaped.
    after = parts.join(JSON.stringify(value).slice(1, -1));
  }
  if (after !== before) writeFileSync(path, after);
}
for (const [name, count] of counts) console.log(`${name}: ${count} places`);
if (!counts.get('NEXT_PUBLIC_URL')) {
  console.error(
    'The image was built with a fixed NEXT_PUBLIC_URL: its pages would name another site, and an image built for ' +
      'http://localhost:3000 lets anyone import. Build it with NEXT_PUBLIC_URL=__NEXT_PUBLIC_URL__.',
  );
  process.exit(1);
}
