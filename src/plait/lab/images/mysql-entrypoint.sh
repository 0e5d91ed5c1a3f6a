#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts the server. The first start of a data directory gives root the password of MYSQL_ROOT_PASSWORD, from anywhere, and makes
# MYSQL_DATABASE if that is set.
set -eu
[ "$1" = mariadbd ] || exec "$@"
data=/var/lib/mysql
set -- "$@" --user=mysql --datadir="$data" --bind-address=0.0.0.0 --port=3306 --skip-name-resolve \
    --socket=/run/mysqld/mysqld.sock --innodb-flush-log-at-trx-commit=2
if [ ! -d "$data/mysql" ]; then
    if [ -z "${MYSQL_ROOT_PASSWORD:-}" ]; then
        echo "the database is empty and MYSQL_ROOT_PASSWORD is not set: docker run -e MYSQL_ROOT_PASSWORD=... " >&2
        exit 1
    fi
    cp -a /usr/share/mysql-empty/. "$data"/
    password=$(printf %s "$MYSQL_ROOT_PASSWORD" | sed "s/[\\\\']/\\\\&/g")
    (
        umask 077
        printf '%s\n' "ALTER USER root@localhost IDENTIFIED BY '$password';"
        printf '%s\n' "CREATE OR REPLACE USER root@'%' IDENTIFIED BY '$password';"
        printf '%s\n' "GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;"
        [ -z "${MYSQL_DATABASE:-}" ] || printf '%s\n' "CREATE DATABASE IF NOT EXISTS \`$MYSQL_DATABASE\`;"
    ) > /run/mysqld/first.sql
    chown mysql: /run/mysqld/first.sql
    set -- "$@" --init-file=/run/mysqld/first.sql
fi
unset MYSQL_ROOT_PASSWORD
exec "$@"
