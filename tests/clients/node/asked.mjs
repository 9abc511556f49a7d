// What the tests ask for, as their first argument, and the structured answer that `tests/clients/support.py` has too.
import * as z from "zod";

export const { url, key, model, question, column, way } = JSON.parse(process.argv[2]);

export const Mountain = z.object({
  name: z.enum(["富士山", "北岳"]),
  height: z.number().int().min(0).max(9999),
  is_volcano: z.boolean(),
});

/** The items of a stream. */
export async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

/** Print what the way that is asked for gives: a text, a list of its pieces, or an object. */
export async function answer(columns) {
  console.log(JSON.stringify(await columns[column][way]()));
}
