# SPDX-License-Identifier: Apache-2.0
# nginx in the foreground with its logs on the container's output, as the image of that name does everywhere.
FROM scratch
ADD nginx.tar /
COPY nginx.conf /etc/nginx/nginx.conf
COPY index.html /usr/share/nginx/html/index.html
RUN ldconfig && mkdir -p /var/log/nginx /var/lib/nginx && ln -sf /dev/stdout /var/log/nginx/access.log && ln -sf /dev/stderr /var/log/nginx/error.log
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
