'use strict';

const crypto = require('crypto');
const http = require('http');
const { WebSocketServer } = require('ws');

const limit = Number(process.env.LIMIT);
const acks = new Map(); // by name, what is to be called
let inFlight = 0;

const handlers = {
	'/env': (req, res, query) => res.end(process.env[query.get('name')]),
	'/sleep': (req, res, query) => {
		if (++inFlight > limit) {
			res.statusCode = 500;
		}
		res.flushHeaders();
		setTimeout(() => {
			inFlight--;
			res.end('slept');
		}, Number(query.get('ms')));
	},
	'/events': (req, res, query) => {
		res.setHeader('Content-Type', 'text/event-stream');
		res.write('data: 1\n\n');
		acks.set(query.get('name'), () => res.end('data: 2\n\n'));
	},
	'/ack': (req, res, query) => {
		acks.get(query.get('name'))();
		res.end();
	},
	'/upload': (req, res) => {
		const hash = crypto.createHash('sha256');
		let size = 0;
		req.on('data', (part) => {
			hash.update(part);
			size += part.length;
		});
		req.on('end', () => res.end(`${hash.digest('hex')} ${size} ${req.headers['content-length'] ?? -1}\n`));
	},
};

const server = http.createServer((req, res) => {
	const url = new URL(req.url, 'http://app');
	const handle = handlers[url.pathname];
	if (!handle) {
		res.statusCode = 404;
		return res.end();
	}
	handle(req, res, url.searchParams);
});

const sockets = new WebSocketServer({ server, path: '/ws', perMessageDeflate: true });
sockets.on('connection', (socket) => {
	socket.on('message', (data, binary) => socket.send(data, { binary }));
});

process.on('SIGTERM', () => {
	console.log(`asked to end with ${inFlight} in flight`);
	sockets.clients.forEach((socket) => socket.close(1000, 'done'));
	server.close(() => console.log('ended'));
	server.closeIdleConnections();
});

server.listen(Number(process.env.PORT), () => console.log('listening'));
