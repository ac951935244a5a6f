"""A script with asyncio, aiohttp and tenacity, and its results in SQLite: `script.py API HOOK IDS DATABASE`.

Does: a task for each asset, with the same backoff as assetwatch; at most 32 requests at once; timeouts; Retry-After; each
result synced to the disk before it is told of, and what was not told is told after a restart.
Does not: remember the backoff of a waiting asset over a restart, pace requests over all assets, stop at a bad key or
spare an API that is down, sign what it tells, give up on an asset.
"""

import asyncio
import sqlite3
import sys

import aiohttp
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

API, HOOK, IDS, DATABASE = sys.argv[1:]
IN_FLIGHT = asyncio.Semaphore(32)


class NotReady(Exception):
    pass


def open_database():
    database = sqlite3.connect(DATABASE, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE IF NOT EXISTS assets"
        " (id TEXT PRIMARY KEY, status TEXT, url TEXT, told INTEGER NOT NULL DEFAULT 0)"
    )
    return database


@retry(
    retry=retry_if_exception_type((NotReady, aiohttp.ClientError, asyncio.TimeoutError)),
    wait=wait_exponential(multiplier=2, exp_base=1.5, max=60),
)
async def final(session, asset):
    async with IN_FLIGHT:
        async with session.get(f"{API}/pub/v2/assets/{asset}") as answer:
            pause = float(answer.headers.get("retry-after", 0))
            data = (await answer.json())["data"] if answer.status == 200 else None
    if data is not None and data["status"] not in ("pending", "processing"):
        return data
    await asyncio.sleep(pause)
    raise NotReady


@retry(stop=stop_after_attempt(12), wait=wait_exponential(multiplier=5, max=3600))
async def tell(session, asset, status):
    async with session.post(HOOK, json={"data": {"asset_id": asset, "status": status}}) as answer:
        answer.raise_for_status()


async def follow(session, database, asset, status):
    if status is None:
        data = await final(session, asset)
        status = data["status"]
        database.execute("UPDATE assets SET status = ?, url = ? WHERE id = ?", (status, data.get("url"), asset))
    await tell(session, asset, status)
    database.execute("UPDATE assets SET told = 1 WHERE id = ?", (asset,))


def read_new_ids(database, ids):
    new = [(line.strip(),) for line in ids]
    if new:
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT OR IGNORE INTO assets (id) VALUES (?)", new)
        database.execute("COMMIT")


async def main():
    database = open_database()
    followed = {}
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout, headers={"x-api-key": "key"}) as session:
        with open(IDS) as ids:
            while True:
                read_new_ids(database, ids)
                for asset, status in database.execute("SELECT id, status FROM assets WHERE told = 0").fetchall():
                    if asset not in followed:
                        followed[asset] = asyncio.create_task(follow(session, database, asset, status))
                await asyncio.sleep(1)


asyncio.run(main())
