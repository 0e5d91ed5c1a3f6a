# SPDX-License-Identifier: Apache-2.0
# A MariaDB server under the name `mysql`. The empty database is made here, so that a container is up within a second or two.
FROM scratch
ADD mysql.tar /
COPY mysql-entrypoint.sh /usr/local/bin/entrypoint
RUN ldconfig && chmod 0755 /usr/local/bin/entrypoint && ln -sf mariadb /usr/bin/mysql && ln -sf mariadb-admin /usr/bin/mysqladmin \
    && echo 'mysql:x:999:' >> /etc/group && echo 'mysql:x:999:999::/var/lib/mysql:/bin/false' >> /etc/passwd \
    && mkdir -p /run/mysqld /var/lib/mysql /usr/share/mysql-empty && chown mysql: /run/mysqld /var/lib/mysql \
    && mariadb-install-db --user=mysql --datadir=/usr/share/mysql-empty --skip-test-db --auth-root-authentication-method=normal
EXPOSE 3306
ENTRYPOINT ["entrypoint"]
CMD ["mariadbd"]
