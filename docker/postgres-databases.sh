#!/usr/bin/env bash
# Run once by the PostgreSQL image, when its volume is empty: a database per service, each with a
# role of its own that can reach nothing else.
set -euo pipefail

for name in orders stock; do
  psql --username "$POSTGRES_USER" --dbname postgres --no-psqlrc --set ON_ERROR_STOP=1 \
    --set name="$name" --set password="$HALFMSG_DB_PASSWORD" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
