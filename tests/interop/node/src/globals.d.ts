interface String { isWellFormed(): boolean } // in Node 20, in TypeScript's library from es2024
